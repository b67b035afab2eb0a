import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.ArrayList;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** java Read.java <targets, a line each: URL, method and body: reads all of them at once with the JDK's own client. */
class Read {
    // As it is: it offers HTTP/2 with each request.
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    public static void main(String[] args) throws Exception {
        var readers = new ArrayList<Callable<Void>>();
        for (var line : new BufferedReader(new InputStreamReader(System.in)).lines().toList()) {
            var number = readers.size();
            var target = line.split("\t", 3);
            readers.add(() -> read(number, target[0], target[1], target[2]));
        }
        var pool = Executors.newFixedThreadPool(readers.size());
        for (Future<Void> reading : pool.invokeAll(readers)) reading.get();
        System.exit(0);
    }

    private static Void read(int number, String url, String method, String body) throws Exception {
        var reader = new Reader(number);
        while (!reader.ended) {
            var request = HttpRequest.newBuilder(URI.create(url)).header("Accept", "text/event-stream");
            if (reader.last != null) request.header("Last-Event-ID", reader.last);
            if (method.equals("POST")) {
                request.header("Content-Type", "application/json").POST(BodyPublishers.ofString(body));
            }
            try {
                HttpResponse<java.util.stream.Stream<String>> response = CLIENT.send(request.build(), BodyHandlers.ofLines());
                if (response.statusCode() != 200) throw new IllegalStateException("status " + response.statusCode());
                response.body().forEach(reader::take);
            } catch (IOException | UncheckedIOException broken) {
                Thread.sleep(20);
            }
            reader.forgetTheHalfBlock();
        }
        tell(number, "=", "closed at done");
        return null;
    }

    private static synchronized void tell(int number, String name, String data) {
        System.out.println(number + "\t" + name + "\t" + data);
    }

    private static class Reader {
        private final int number;
        private String last, event, data, id;
        private boolean ended;

        Reader(int number) {
            this.number = number;
        }

        void take(String line) {
            if (line.startsWith("event: ")) event = line.substring(7);
            else if (line.startsWith("data: ")) data = line.substring(6);
            else if (line.startsWith("id: ")) id = line.substring(4);
            else if (line.isEmpty() && data != null) {
                tell(number, event == null ? "message" : event, data);
                if (id != null) last = id;
                ended |= data.startsWith("{\"done\"") || data.startsWith("{\"error\"");
                forgetTheHalfBlock();
            }
        }

        void forgetTheHalfBlock() {
            event = data = id = null;
        }
    }
}
