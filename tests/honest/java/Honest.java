import java.util.HashMap;
import java.util.Map;

/** grpc-java's part of the honest suite: `server`, `client` and `http`. See tests/honest/README.md. */
public final class Honest {
  /** The options on the command line. */
  record Words(Map<String, String> given) {
    int number(String name, int otherwise) {
      return given.containsKey(name) ? Integer.parseInt(given.get(name)) : otherwise;
    }

    String text(String name, String otherwise) {
      return given.getOrDefault(name, otherwise);
    }
  }

  public static void main(String[] args) throws Exception {
    Map<String, String> given = new HashMap<>();
    for (int place = 1; place < args.length; place++) {
      String[] pair = args[place].split("=", 2);
      given.put(pair[0], pair[1]);
    }
    Words words = new Words(given);
    switch (args[0]) {
      case "server" -> Server.run(words);
      case "client" -> new Client(words).run();
      case "http" -> Http.run(words);
      default -> throw new IllegalArgumentException(args[0]);
    }
  }
}
