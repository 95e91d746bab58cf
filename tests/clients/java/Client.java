import com.google.protobuf.Empty;
import com.google.rpc.BadRequest;
import io.grpc.Channel;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.AbstractStub;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import shop.notifications.v1.NotificationsGrpc;
import shop.notifications.v1.NotificationsOuterClass.Notification;
import shop.notifications.v1.NotificationsOuterClass.NotifyRequest;
import shop.products.v1.ProductsGrpc;
import shop.products.v1.ProductsOuterClass;
import shop.products.v1.ProductsOuterClass.ImportResponse;
import shop.products.v1.ProductsOuterClass.Product;
import shop.products.v1.ProductsOuterClass.SearchRequest;
import shop.users.v1.UsersGrpc;
import shop.users.v1.UsersOuterClass.CreateRequest;
import shop.users.v1.UsersOuterClass.GetRequest;
import shop.users.v1.UsersOuterClass.WatchRequest;

/** The shop as grpc-java calls it: {@code Client ADDRESS} runs the cases against the sidecar there, and prints a line for each. */
final class Client {
  /** A guard that only a very slow machine reaches. */
  private static final long LIMIT_SECONDS = 60;

  private interface Case {
    void run() throws Exception;
  }

  private final Channel channel;

  private Client(Channel channel) {
    this.channel = channel;
  }

  public static void main(String[] args) throws Exception {
    ManagedChannel channel = Grpc.newChannelBuilder(args[0], InsecureChannelCredentials.create()).build();
    boolean failed = false;
    for (Map.Entry<String, Case> one : new Client(channel).cases().entrySet()) {
      try {
        one.getValue().run();
        System.out.println("ok " + one.getKey());
      } catch (Exception | AssertionError e) {
        System.out.println("FAIL " + one.getKey() + " " + e.toString().replace('\n', ' '));
        failed = true;
      }
    }
    channel.shutdownNow().awaitTermination(LIMIT_SECONDS, TimeUnit.SECONDS);
    System.exit(failed ? 1 : 0);
  }

  private Map<String, Case> cases() {
    Map<String, Case> cases = new LinkedHashMap<>();
    cases.put("unary", this::unary);
    cases.put("error-details", this::errorDetails);
    cases.put("server-stream", this::serverStream);
    cases.put("client-stream", this::clientStream);
    cases.put("bidi-stream", this::bidiStream);
    cases.put("metadata", this::metadata);
    cases.put("deadline", this::deadline);
    cases.put("cancel", this::cancel);
    cases.put("unknown-service", this::unknownService);
    cases.put("gzip", this::gzip);
    cases.put("many-calls", this::manyCalls);
    return cases;
  }

  private UsersGrpc.UsersBlockingStub users() {
    return limited(UsersGrpc.newBlockingStub(channel));
  }

  private ProductsGrpc.ProductsBlockingStub products() {
    return limited(ProductsGrpc.newBlockingStub(channel));
  }

  private static <S extends AbstractStub<S>> S limited(S stub) {
    return stub.withDeadlineAfter(LIMIT_SECONDS, TimeUnit.SECONDS);
  }

  private static void getTeapot(ProductsGrpc.ProductsBlockingStub products) {
    same("id", products.get(ProductsOuterClass.GetRequest.newBuilder().setId("teapot").build()).getId(), "teapot");
  }

  private void unary() {
    CreateRequest request =
        CreateRequest.newBuilder().setName("Duke").setEmail(UUID.randomUUID() + "@example.com").build();
    GetRequest made = GetRequest.newBuilder().setId(users().create(request).getId()).build();
    same("name", users().get(made).getName(), "Duke");
  }

  private void errorDetails() throws Exception {
    CreateRequest request = CreateRequest.newBuilder().setName("Duke").setEmail("nowhere").build();
    StatusRuntimeException e = refused(() -> users().create(request), Status.Code.INVALID_ARGUMENT);
    for (com.google.protobuf.Any detail : StatusProto.fromThrowable(e).getDetailsList()) {
      if (detail.is(BadRequest.class)) {
        same("field", detail.unpack(BadRequest.class).getFieldViolations(0).getField(), "email");
        return;
      }
    }
    throw new AssertionError("no BadRequest among the details of " + e);
  }

  private void serverStream() {
    int[] count = {0};
    products().search(SearchRequest.getDefaultInstance()).forEachRemaining(product -> count[0]++);
    if (count[0] < 12) {
      throw new AssertionError(count[0] + " products, not the dozen that there is");
    }
  }

  private void clientStream() throws Exception {
    Heard<ImportResponse> heard = new Heard<>();
    StreamObserver<Product> sent = limited(ProductsGrpc.newStub(channel)).import_(heard);
    for (int i = 0; i < 100; i++) {
      sent.onNext(Product.newBuilder().setId("java-" + i).setName("Imported by Java").build());
    }
    sent.onCompleted();
    same("imported", heard.next().getImported(), 100);
    same("status", heard.end(), Status.Code.OK);
  }

  private void bidiStream() throws Exception {
    Heard<Notification> told = new Heard<>();
    StreamObserver<NotifyRequest> sent = limited(NotificationsGrpc.newStub(channel)).stream(told);
    // Each is sent when the one before was answered: nothing may wait for the end of the stream.
    for (int i = 0; i < 20; i++) {
      sent.onNext(NotifyRequest.newBuilder().setUserId("duke").setText("number " + i).build());
      same("text", told.next().getText(), "number " + i);
    }
    sent.onCompleted();
    same("status", told.end(), Status.Code.OK);
  }

  private void metadata() {
    Metadata metadata = new Metadata();
    for (String tag : List.of("one", "two")) {
      metadata.put(Metadata.Key.of("x-tag", Metadata.ASCII_STRING_MARSHALLER), tag);
    }
    for (byte[] blob : List.of(new byte[] {0, 1, -2, -1}, new byte[0], new byte[] {111, 100, 100})) {
      metadata.put(Metadata.Key.of("x-blob-bin", Metadata.BINARY_BYTE_MARSHALLER), blob);
    }
    getTeapot(products().withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata)));
  }

  private void deadline() throws Exception {
    UsersGrpc.UsersBlockingStub hasty = users().withDeadlineAfter(1, TimeUnit.MILLISECONDS);
    refused(() -> hasty.watch(WatchRequest.getDefaultInstance()).forEachRemaining(event -> {}), Status.Code.DEADLINE_EXCEEDED);
  }

  private void cancel() throws Exception {
    Heard<Notification> told = new Heard<>();
    StreamObserver<NotifyRequest> sent = limited(NotificationsGrpc.newStub(channel)).stream(told);
    sent.onNext(NotifyRequest.newBuilder().setUserId("duke").setText("the only one").build());
    same("text", told.next().getText(), "the only one");
    ((ClientCallStreamObserver<NotifyRequest>) sent).cancel("enough", null);
    same("status", told.end(), Status.Code.CANCELLED);
    getTeapot(products());
  }

  private void unknownService() throws Exception {
    MethodDescriptor<Empty, Empty> method =
        MethodDescriptor.<Empty, Empty>newBuilder()
            .setType(MethodDescriptor.MethodType.UNARY)
            .setFullMethodName("shop.nothing.v1.Nothing/Do")
            .setRequestMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .setResponseMarshaller(ProtoUtils.marshaller(Empty.getDefaultInstance()))
            .build();
    StatusRuntimeException e =
        refused(
            () -> ClientCalls.blockingUnaryCall(channel, method, users().getCallOptions(), Empty.getDefaultInstance()),
            Status.Code.UNIMPLEMENTED);
    if (!e.getTrailers().containsKey(Metadata.Key.of("x-weft-error", Metadata.ASCII_STRING_MARSHALLER))) {
      throw new AssertionError("no x-weft-error in " + e.getTrailers());
    }
  }

  private void gzip() {
    getTeapot(products().withCompression("gzip"));
  }

  private void manyCalls() throws Exception {
    var lanes = Executors.newFixedThreadPool(20);
    List<Future<?>> running = new ArrayList<>();
    for (int lane = 0; lane < 20; lane++) {
      running.add(
          lanes.submit(
              () -> {
                for (int i = 0; i < 50; i++) {
                  getTeapot(products());
                }
              }));
    }
    for (Future<?> lane : running) {
      lane.get();
    }
    lanes.shutdown();
  }

  /** The messages of a stream, and how it ends. */
  private static final class Heard<T> implements StreamObserver<T> {
    private final BlockingQueue<T> messages = new LinkedBlockingQueue<>();
    private final BlockingQueue<Status> ended = new LinkedBlockingQueue<>();

    @Override
    public void onNext(T message) {
      messages.add(message);
    }

    @Override
    public void onError(Throwable error) {
      ended.add(Status.fromThrowable(error));
    }

    @Override
    public void onCompleted() {
      ended.add(Status.OK);
    }

    T next() throws InterruptedException {
      T message = messages.poll(LIMIT_SECONDS, TimeUnit.SECONDS);
      if (message == null) {
        throw new AssertionError("nothing comes; it ended with " + ended.peek());
      }
      return message;
    }

    Status.Code end() throws InterruptedException {
      Status status = ended.poll(LIMIT_SECONDS, TimeUnit.SECONDS);
      if (status == null || !messages.isEmpty()) {
        throw new AssertionError("it has not ended, or says more: " + messages);
      }
      return status.getCode();
    }
  }

  /** The error that a call ends with. */
  private static StatusRuntimeException refused(Case call, Status.Code code) throws Exception {
    try {
      call.run();
    } catch (StatusRuntimeException e) {
      same("code", e.getStatus().getCode(), code);
      return e;
    }
    throw new AssertionError("an answer instead of " + code);
  }

  private static <T> void same(String what, T got, T want) {
    if (!got.equals(want)) {
      throw new AssertionError(what + " is " + got + " instead of " + want);
    }
  }
}
