import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/** The JDK's own HTTP server, with small answers. */
final class Http {
  static void run(Honest.Words words) throws IOException {
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", words.number("port", 0)), 4096);
    server.createContext("/", Http::echo);
    server.createContext("/stream", Http::stream);
    server.setExecutor(Executors.newFixedThreadPool(64));
    server.start();
  }

  private static void echo(HttpExchange exchange) throws IOException {
    int read = exchange.getRequestBody().readAllBytes().length;
    String told = exchange.getRequestMethod() + " " + exchange.getRequestURI() + " " + read + "\n";
    byte[] body = told.getBytes(StandardCharsets.UTF_8);
    boolean isHead = exchange.getRequestMethod().equals("HEAD");
    exchange.sendResponseHeaders(200, isHead ? -1 : body.length);
    if (!isHead) {
      exchange.getResponseBody().write(body);
    }
    exchange.close();
  }

  private static void stream(HttpExchange exchange) throws IOException {
    exchange.sendResponseHeaders(200, 0);
    for (int number = 0; number < 100; number++) {
      exchange.getResponseBody().write(("part " + number + "\n").getBytes(StandardCharsets.UTF_8));
    }
    exchange.close();
  }

  private Http() {}
}
