import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.LinkedBlockingQueue;

/** Makes calls in a loop, and reports their outcome. */
final class Client {
  private final Honest.Words words;
  private final String kind;
  private final byte[] body;
  private final int messages;
  private final int expected;
  private long end;
  /** For each call: when it ended and how long it took, in nanoseconds. */
  private final List<long[]> answers = new ArrayList<>();
  private final Map<String, Integer> failures = new TreeMap<>();
  private String example = "";

  Client(Honest.Words words) {
    this.words = words;
    kind = words.text("kind", "unary");
    body = new byte[words.number("bytes", 128)];
    Arrays.fill(body, (byte) 'x');
    messages = words.number("messages", 10);
    expected = words.number("expect", -1);
  }

  void run() throws Exception {
    List<Thread> threads = new ArrayList<>();
    String[] target = words.text("target", "").split(":");
    for (int connection = 0; connection < words.number("connections", 1); connection++) {
      ManagedChannel channel =
          NettyChannelBuilder.forAddress(new InetSocketAddress(target[0], Integer.parseInt(target[1])))
              .usePlaintext()
              .maxInboundMessageSize(64 << 20)
              .build();
      warmUp(channel);
      for (int worker = 0; worker < words.number("each", 1); worker++) {
        threads.add(new Thread(() -> work(channel)));
      }
    }
    end = System.nanoTime() + TimeUnit.SECONDS.toNanos(words.number("seconds", 2));
    threads.forEach(Thread::start);
    for (Thread thread : threads) {
      thread.join();
    }
    report();
    System.exit(0);
  }

  /** The first call, which loads classes: it must succeed, but its time is not the server's. */
  private void warmUp(ManagedChannel channel) {
    try {
      ClientCalls.blockingUnaryCall(channel, Raw.UNARY, CallOptions.DEFAULT, body);
    } catch (StatusRuntimeException e) {
      fail(e.getStatus().getCode().name(), String.valueOf(e.getStatus().getDescription()));
    }
  }

  private void work(ManagedChannel channel) {
    List<long[]> seen = new ArrayList<>();
    for (int number = 1; System.nanoTime() < end; number++) {
      long began = System.nanoTime();
      try {
        if (!call(channel, number)) {
          fail("CHANGED", "the message came back changed");
        }
      } catch (StatusRuntimeException e) {
        if (e.getStatus().getCode().value() != expected) {
          fail(e.getStatus().getCode().name(), String.valueOf(e.getStatus().getDescription()));
        }
      } catch (InterruptedException e) {
        return;
      }
      long now = System.nanoTime();
      seen.add(new long[] {now, now - began});
    }
    synchronized (this) {
      answers.addAll(seen);
    }
  }

  private synchronized void fail(String code, String why) {
    failures.merge(code, 1, Integer::sum);
    example = why;
  }

  /** Makes a call, and returns whether the messages came back unchanged. */
  private boolean call(ManagedChannel channel, int number) throws InterruptedException {
    CallOptions options = CallOptions.DEFAULT;
    if (words.number("deadline_ms", 0) > 0) {
      options = options.withDeadlineAfter(words.number("deadline_ms", 0), TimeUnit.MILLISECONDS);
    }
    Metadata headers = new Metadata();
    headers.put(Server.COUNT, String.valueOf(messages));
    if (words.given().containsKey("do") && number % words.number("do_every", 1) == 0) {
      headers.put(Server.DO, words.text("do", ""));
    }
    var with = io.grpc.ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(headers));
    if (kind.equals("unary")) {
      return Arrays.equals(ClientCalls.blockingUnaryCall(with, Raw.UNARY, options, body), body);
    }
    if (kind.equals("server")) {
      int count = 0;
      Iterator<byte[]> heard = ClientCalls.blockingServerStreamingCall(with, Raw.SERVER_STREAM, options, body);
      while (heard.hasNext()) {
        if (!Arrays.equals(heard.next(), body)) {
          return false;
        }
        count++;
      }
      return count == messages;
    }
    boolean isBidi = kind.equals("bidi");
    Heard heard = new Heard();
    var call = with.newCall(isBidi ? Raw.BIDI : Raw.CLIENT_STREAM, options);
    StreamObserver<byte[]> out =
        isBidi ? ClientCalls.asyncBidiStreamingCall(call, heard) : ClientCalls.asyncClientStreamingCall(call, heard);
    for (int message = 0; message < messages; message++) {
      out.onNext(body);
      if (isBidi && !Arrays.equals(heard.next(), body)) {
        return false;
      }
    }
    out.onCompleted();
    return (isBidi || Arrays.equals(heard.next(), body)) && heard.next() == null;
  }

  /** The messages of a stream, one after the other. */
  private static final class Heard implements StreamObserver<byte[]> {
    private final LinkedBlockingQueue<Object> heard = new LinkedBlockingQueue<>();

    /** The next message, or null at the end. */
    byte[] next() throws InterruptedException {
      Object next = heard.take();
      if (next instanceof Throwable error) {
        throw Status.fromThrowable(error).asRuntimeException();
      }
      return next instanceof byte[] bytes ? bytes : null;
    }

    @Override
    public void onNext(byte[] message) {
      heard.add(message);
    }

    @Override
    public void onError(Throwable error) {
      heard.add(error);
    }

    @Override
    public void onCompleted() {
      heard.add("end");
    }
  }

  private void report() {
    long[] at = answers.stream().mapToLong(answer -> answer[0]).sorted().toArray();
    long[] took = answers.stream().mapToLong(answer -> answer[1]).sorted().toArray();
    long gap = 0;
    for (int place = 1; place < at.length; place++) {
      gap = Math.max(gap, at[place] - at[place - 1]);
    }
    StringBuilder counts = new StringBuilder();
    failures.forEach((code, count) -> counts.append(counts.isEmpty() ? "" : ",").append("\"" + code + "\":" + count));
    long max = took.length == 0 ? 0 : took[took.length - 1];
    long median = took.length == 0 ? 0 : took[took.length / 2];
    System.out.printf(
        java.util.Locale.ROOT,
        "{\"calls\":%d,\"failures\":{%s},\"example\":\"%s\",\"gap_ms\":%.3f,\"p50_ms\":%.3f,"
            + "\"max_ms\":%.3f}%n",
        at.length, counts, example.replaceAll("[\"\\\\\\p{Cntrl}]", " "), gap / 1e6, median / 1e6, max / 1e6);
  }
}
