import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerInterceptors;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.net.InetSocketAddress;
import java.util.concurrent.TimeUnit;

/** The service. */
final class Server {
  static final Metadata.Key<String> DO = Metadata.Key.of("x-do", Metadata.ASCII_STRING_MARSHALLER);
  static final Metadata.Key<String> COUNT = Metadata.Key.of("x-count", Metadata.ASCII_STRING_MARSHALLER);
  private static final Context.Key<Metadata> HEADERS = Context.key("headers");

  static void run(Honest.Words words) throws Exception {
    NettyServerBuilder builder =
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", words.number("port", 0)))
            .maxInboundMessageSize(64 << 20);
    if (words.number("max_streams", 0) > 0) {
      builder.maxConcurrentCallsPerConnection(words.number("max_streams", 0));
    }
    if (words.number("max_age_ms", 0) > 0) {
      builder.maxConnectionAge(words.number("max_age_ms", 0), TimeUnit.MILLISECONDS);
    }
    if (words.number("keepalive_min_ms", 0) > 0) {
      builder.permitKeepAliveTime(words.number("keepalive_min_ms", 0), TimeUnit.MILLISECONDS);
      builder.permitKeepAliveWithoutCalls(true);
    }
    ServerServiceDefinition service =
        ServerServiceDefinition.builder("honest.v1.Echo")
            .addMethod(Raw.UNARY, ServerCalls.asyncUnaryCall(Server::unary))
            .addMethod(Raw.SERVER_STREAM, ServerCalls.asyncServerStreamingCall(Server::serverStream))
            .addMethod(Raw.CLIENT_STREAM, ServerCalls.asyncClientStreamingCall(out -> new Collect(out)))
            .addMethod(Raw.BIDI, ServerCalls.asyncBidiStreamingCall(out -> new Echo(out)))
            .build();
    builder.addService(ServerInterceptors.intercept(service, new Asked())).build().start().awaitTermination();
  }

  /** Keeps a call's headers, and does what `x-do` says. */
  private static final class Asked implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      String[] what = headers.containsKey(DO) ? headers.get(DO).split(":") : new String[] {""};
      switch (what[0]) {
        case "fail" -> {
          call.close(Status.fromCodeValue(Integer.parseInt(what[1])).withDescription("as asked"), new Metadata());
          return new ServerCall.Listener<>() {};
        }
        case "wait" -> pause(Integer.parseInt(what[1]));
        default -> {}
      }
      return Contexts.interceptCall(Context.current().withValue(HEADERS, headers), call, headers, next);
    }

    private static void pause(int millis) {
      try {
        Thread.sleep(millis);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }
  }

  private static void unary(byte[] request, StreamObserver<byte[]> out) {
    out.onNext(request);
    out.onCompleted();
  }

  private static void serverStream(byte[] request, StreamObserver<byte[]> out) {
    String count = HEADERS.get().get(COUNT);
    for (int number = 0; number < (count == null ? 10 : Integer.parseInt(count)); number++) {
      out.onNext(request);
    }
    out.onCompleted();
  }

  /** Answers each message. */
  private static class Echo implements StreamObserver<byte[]> {
    final StreamObserver<byte[]> out;

    Echo(StreamObserver<byte[]> out) {
      this.out = out;
    }

    @Override
    public void onNext(byte[] message) {
      out.onNext(message);
    }

    @Override
    public void onError(Throwable error) {}

    @Override
    public void onCompleted() {
      out.onCompleted();
    }
  }

  /** Answers with the last message. */
  private static final class Collect extends Echo {
    private byte[] last = {};

    Collect(StreamObserver<byte[]> out) {
      super(out);
    }

    @Override
    public void onNext(byte[] message) {
      last = message;
    }

    @Override
    public void onCompleted() {
      out.onNext(last);
      out.onCompleted();
    }
  }

  private Server() {}
}
