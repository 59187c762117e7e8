import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;

/** The JDK's HttpClient with its defaults: it offers HTTP/2 with every request. */
class Jdk {
    public static void main(String[] arguments) throws Exception {
        var body = new ByteArrayOutputStream();
        body.write("--b\r\nContent-Disposition: form-data; name=\"response_format\"\r\n\r\ntext\r\n".getBytes());
        body.write("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n".getBytes());
        body.write(Files.readAllBytes(Path.of(arguments[1])));
        body.write("\r\n--b--\r\n".getBytes());
        var request = HttpRequest.newBuilder(URI.create(arguments[0] + "/v1/audio/transcriptions"))
            .header("Content-Type", "multipart/form-data; boundary=b")
            .POST(HttpRequest.BodyPublishers.ofByteArray(body.toByteArray()))
            .build();
        System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body().trim());
    }
}
