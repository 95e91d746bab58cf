import hello.v1.GreeterGrpc;
import hello.v1.Hello.HelloRequest;
import hello.v1.Hello.HelloResponse;
import io.grpc.Server;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.stub.StreamObserver;
import java.net.InetSocketAddress;
import java.util.concurrent.TimeUnit;

/** The greeter: implements hello.v1.Greeter of proto/hello/v1/hello.proto. */
public final class Greeter extends GreeterGrpc.GreeterImplBase {
  private final String replica;

  private Greeter(String replica) {
    this.replica = replica;
  }

  @Override
  public void hello(HelloRequest request, StreamObserver<HelloResponse> answer) {
    String name = request.getName().isEmpty() ? "world" : request.getName();
    System.out.println("hello to " + name);
    answer.onNext(HelloResponse.newBuilder().setText("Hello, " + name + "!").setAnsweredBy(replica).build());
    answer.onCompleted();
  }

  public static void main(String[] args) throws Exception {
    String replica = args.length > 0 ? args[0] : "greeter";
    // `weft up` sets the address. Only the sidecar calls it, so it needs no TLS: the sidecars have TLS between them.
    String[] address = System.getenv().getOrDefault("WEFT_LISTEN", "127.0.0.1:50051").split(":");
    Server server = NettyServerBuilder.forAddress(new InetSocketAddress(address[0], Integer.parseInt(address[1])))
        .addService(new Greeter(replica))
        // The sidecar asks for this, and sends no calls before the answer is SERVING.
        .addService(new HealthStatusManager().getHealthService())
        .build()
        .start();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(server)));
    System.out.println(replica + " listens at " + String.join(":", address));
    server.awaitTermination();
  }

  /** At SIGTERM or Ctrl-C: accepts no new calls; running calls have 5 s. */
  private static void stop(Server server) {
    try {
      if (!server.shutdown().awaitTermination(5, TimeUnit.SECONDS)) {
        server.shutdownNow();
      }
    } catch (InterruptedException interrupted) {
      server.shutdownNow();
    }
  }
}
