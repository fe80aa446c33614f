import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.CompactOption;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchResponse;
import io.grpc.stub.StreamObserver;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** Java's jetcd, every API of it that one member without users can serve. Run: URL. */
final class Suite {
    private static final int SECONDS = 30;

    private interface Case {
        void run(Suite suite) throws Exception;
    }

    private final String url;
    private final Client client;
    private final KV kv;
    private String prefix = "";

    private Suite(String url) {
        this.url = url;
        client = Client.builder().endpoints(url).build();
        kv = client.getKVClient();
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    private ByteSequence key(String name) {
        return bytes(prefix + name);
    }

    private static <A> A get(Future<A> future) throws Exception {
        return future.get(SECONDS, TimeUnit.SECONDS);
    }

    private static void equal(String what, Object found, Object expected) {
        if (!Objects.equals(found, expected)) {
            throw new AssertionError(what + ": " + found + ", expected " + expected);
        }
    }

    private static void refused(CompletableFuture<?> answer, String text) throws Exception {
        try {
            get(answer);
        } catch (ExecutionException error) {
            if (!String.valueOf(error.getMessage()).contains(text)) {
                throw new AssertionError("error " + error.getMessage() + ", expected " + text);
            }
            return;
        }
        throw new AssertionError("no error, expected " + text);
    }

    private long put(String name, String value) throws Exception {
        return get(kv.put(key(name), bytes(value))).getHeader().getRevision();
    }

    private String value(String name) throws Exception {
        List<KeyValue> found = get(kv.get(key(name))).getKvs();
        return found.isEmpty() ? null : found.get(0).getValue().toString();
    }

    private GetOption.Builder below() {
        return GetOption.builder().isPrefix(true);
    }

    /** A watch whose answers come in a queue; returns once the server says that it is there. */
    private final class Watching implements AutoCloseable {
        final BlockingQueue<WatchResponse> answers = new LinkedBlockingQueue<>();
        final CompletableFuture<Throwable> failed = new CompletableFuture<>();
        final CompletableFuture<Boolean> ended = new CompletableFuture<>();
        final Watch.Watcher watcher;

        Watching(String name, WatchOption.Builder option) throws Exception {
            watcher = client.getWatchClient().watch(
                key(name), option.withCreateNotify(true).build(),
                Watch.listener(answers::add, failed::complete, () -> ended.complete(true)));
            equal("created", next().isCreatedNotify(), true);
        }

        WatchResponse next() throws Exception {
            WatchResponse answer = answers.poll(SECONDS, TimeUnit.SECONDS);
            if (answer == null) {
                throw new AssertionError("no answer of the watch");
            }
            return answer;
        }

        String events(int count) throws Exception {
            List<String> words = new ArrayList<>();
            while (words.size() < count) {
                for (WatchEvent event : next().getEvents()) {
                    String name = event.getKeyValue().getKey().toString();
                    name = name.substring(prefix.length());
                    words.add(event.getEventType() == WatchEvent.EventType.PUT
                        ? "put " + name + "=" + event.getKeyValue().getValue()
                        : "delete " + name);
                }
            }
            return String.join(", ", words);
        }

        @Override
        public void close() {
            watcher.close();
        }
    }

    private void putGetDelete() throws Exception {
        put("a", "1");
        equal("value", value("a"), "1");
        var put = get(kv.put(key("a"), bytes("2"), PutOption.builder().withPrevKV().build()));
        equal("previous", put.getPrevKv().getValue().toString(), "1");
        var gone = get(kv.delete(key("a"), DeleteOption.builder().withPrevKV(true).build()));
        equal("deleted", gone.getDeleted(), 1L);
        equal("what it was", gone.getPrevKvs().get(0).getValue().toString(), "2");
        equal("gone", value("a"), null);
    }

    private void ranges() throws Exception {
        for (int i = 0; i < 9; i++) {
            put("" + i, "" + (9 - i));
        }
        var all = get(kv.get(key(""), below().build()));
        equal("count", all.getCount(), 9L);
        equal("more", all.isMore(), false);
        var top = get(kv.get(key(""), below().withSortField(GetOption.SortTarget.VALUE)
            .withSortOrder(GetOption.SortOrder.ASCEND).withLimit(2).build()));
        equal("least values", top.getKvs().get(1).getValue().toString(), "2");
        equal("more", top.isMore(), true);
        equal("only counted",
            get(kv.get(key(""), below().withCountOnly(true).build())).getCount(), 9L);
        var bare = get(kv.get(key(""), below().withKeysOnly(true).build()));
        equal("keys only", bare.getKvs().get(0).getValue().isEmpty(), true);
        var span = GetOption.builder().withRange(key("5")).withSerializable(true).build();
        equal("range", get(kv.get(key("2"), span)).getCount(), 3L);
        equal("deleted",
            get(kv.delete(key(""), DeleteOption.builder().isPrefix(true).build())).getDeleted(), 9L);
    }

    private void revisions() throws Exception {
        long first = put("a", "1");
        long last = put("a", "2");
        GetOption then = GetOption.builder().withRevision(first).build();
        equal("then", get(kv.get(key("a"), then)).getKvs().get(0).getValue().toString(), "1");
        equal("recent", get(kv.get(key(""), below().withMinModRevision(last).build())).getKvs().size(), 1);
        equal("old", get(kv.get(key(""), below().withMaxCreateRevision(first).build())).getKvs().size(), 1);
        get(kv.compact(last, CompactOption.builder().withCompactPhysical(true).build()));
        refused(kv.get(key("a"), then), "has been compacted");
        refused(kv.get(key("a"), GetOption.builder().withRevision(last + 1000).build()), "future revision");
    }

    private void transactions() throws Exception {
        put("a", "1");
        var done = get(kv.txn()
            .If(new Cmp(key("a"), Cmp.Op.EQUAL, CmpTarget.value(bytes("1"))),
                new Cmp(key("a"), Cmp.Op.GREATER, CmpTarget.version(0)),
                new Cmp(key("a"), Cmp.Op.NOT_EQUAL, CmpTarget.modRevision(0)),
                new Cmp(key("none"), Cmp.Op.EQUAL, CmpTarget.createRevision(0)))
            .Then(Op.put(key("b"), bytes("2"), PutOption.DEFAULT),
                Op.get(key("a"), GetOption.DEFAULT),
                Op.delete(key("a"), DeleteOption.DEFAULT),
                Op.txn(new Cmp[0], new Op[] {Op.put(key("c"), bytes("3"), PutOption.DEFAULT)}, new Op[0]))
            .Else(Op.put(key("b"), bytes("wrong"), PutOption.DEFAULT))
            .commit());
        equal("succeeded", done.isSucceeded(), true);
        equal("read", done.getGetResponses().get(0).getKvs().get(0).getValue().toString(), "1");
        equal("nested", done.getTxnResponses().get(0).isSucceeded(), true);
        equal("values", List.of(value("b"), value("c"), "" + value("a")), List.of("2", "3", "null"));
        var other = get(kv.txn().If(new Cmp(key("b"), Cmp.Op.LESS, CmpTarget.value(bytes("0"))))
            .Else(Op.get(key("b"), GetOption.DEFAULT)).commit());
        equal("the other branch", other.isSucceeded(), false);
    }

    private void namespace() throws Exception {
        try (Client inside = Client.builder().endpoints(url).namespace(key("")).build()) {
            get(inside.getKVClient().put(bytes("a"), bytes("1")));
            equal("outside", value("a"), "1");
            equal("inside",
                get(inside.getKVClient().get(bytes("a"))).getKvs().get(0).getKey().toString(), "a");
        }
    }

    private void watch() throws Exception {
        try (Watching watching = new Watching("", WatchOption.builder().isPrefix(true))) {
            for (int i = 0; i < 3; i++) {
                put("" + i, "x");
            }
            get(kv.delete(key("0")));
            equal("events", watching.events(4), "put 0=x, put 1=x, put 2=x, delete 0");
            client.getWatchClient().requestProgress();
            equal("progress", watching.next().isProgressNotify(), true);
        }
    }

    private void watchHistory() throws Exception {
        long first = put("a", "1");
        long last = put("a", "2");
        WatchOption.Builder since = WatchOption.builder().withRevision(first).withRequireLeader(true);
        try (Watching watching = new Watching("a", since)) {
            equal("history", watching.events(2), "put a=1, put a=2");
            put("a", "3");
            equal("and on", watching.events(1), "put a=3");
        }
        get(kv.compact(last));
        try (Watching late = new Watching("a", WatchOption.builder().withRevision(first))) {
            Throwable error = get(late.failed);
            if (!error.getMessage().contains("has been compacted")) {
                throw new AssertionError(error);
            }
        }
    }

    private void watchOptions() throws Exception {
        put("a", "1");
        try (Watching puts = new Watching("a", WatchOption.builder().withNoDelete(true).withPrevKV(true));
            Watching deletes = new Watching("a", WatchOption.builder().withNoPut(true))) {
            put("a", "2");
            get(kv.delete(key("a")));
            WatchEvent event = puts.next().getEvents().get(0);
            equal("previous", event.getPrevKV().getValue().toString(), "1");
            equal("deletes", deletes.events(1), "delete a");
        }
    }

    private void manyWatches() throws Exception {
        List<Watching> all = new ArrayList<>();
        for (int i = 0; i < 50; i++) {
            all.add(new Watching("" + i, WatchOption.builder()));
        }
        for (int i = 0; i < 50; i++) {
            put("" + i, "x");
        }
        for (int i = 0; i < 50; i++) {
            equal("events", all.get(i).events(1), "put " + i + "=x");
            all.get(i).close();
        }
    }

    private void leases() throws Exception {
        var leases = client.getLeaseClient();
        long id = get(leases.grant(60)).getID();
        get(kv.put(key("a"), bytes("1"), PutOption.builder().withLeaseId(id).build()));
        var left = get(leases.timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
        equal("granted", left.getGrantedTTL(), 60L);
        equal("keys", left.getKeys(), List.of(key("a")));
        equal("kept alive", get(leases.keepAliveOnce(id)).getTTL(), 60L);
        get(leases.revoke(id));
        equal("its key", value("a"), null);
        refused(leases.revoke(id), "requested lease not found");
    }

    private void leaseKeepsAlive() throws Exception {
        var leases = client.getLeaseClient();
        long id = get(leases.grant(2)).getID();
        get(kv.put(key("a"), bytes("1"), PutOption.builder().withLeaseId(id).build()));
        BlockingQueue<Long> heard = new LinkedBlockingQueue<>();
        CloseableClient alive = leases.keepAlive(id, new StreamObserver<LeaseKeepAliveResponse>() {
            @Override
            public void onNext(LeaseKeepAliveResponse answer) {
                heard.add(answer.getTTL());
            }

            @Override
            public void onError(Throwable error) {
                heard.add(-1L);
            }

            @Override
            public void onCompleted() {
            }
        });
        for (int i = 0; i < 6; i++) {
            equal("ttl", heard.poll(SECONDS, TimeUnit.SECONDS), 2L);
        }
        equal("the key", value("a"), "1");
        alive.close();
        for (int i = 0; value("a") != null; i++) {
            equal("it expires", i < SECONDS * 20, true);
            Thread.sleep(50);
        }
    }

    private void upkeep() throws Exception {
        var maintenance = client.getMaintenanceClient();
        var status = get(maintenance.statusMember(url));
        equal("version", status.getVersion().startsWith("3."), true);
        equal("sizes", status.getDbSize() > 0 && status.getRaftIndex() > 0, true);
        var members = get(client.getClusterClient().listMember()).getMembers();
        equal("members", members.size(), 1);
        equal("leader", status.getLeader(), members.get(0).getId());
        equal("alarms", get(maintenance.listAlarms()).getAlarms().size(), 0);
        get(maintenance.hashKV(url, 0));
        get(maintenance.defragmentMember(url));
    }

    private void refusals() throws Exception {
        refused(kv.put(bytes(""), bytes("x")), "key is not provided");
        refused(kv.put(key("a"), bytes("x"), PutOption.builder().withLeaseId(77).build()),
            "requested lease not found");
    }

    private void atOnce() throws Exception {
        List<CompletableFuture<?>> puts = new ArrayList<>();
        for (int i = 0; i < 1000; i++) {
            puts.add(kv.put(key("" + i), bytes("x")));
        }
        for (CompletableFuture<?> put : puts) {
            get(put);
        }
        equal("keys", get(kv.get(key(""), below().withCountOnly(true).build())).getCount(), 1000L);
    }

    public static void main(String[] words) {
        Map<String, Case> cases = new LinkedHashMap<>();
        cases.put("put-get-delete", Suite::putGetDelete);
        cases.put("ranges", Suite::ranges);
        cases.put("revisions", Suite::revisions);
        cases.put("transactions", Suite::transactions);
        cases.put("namespace", Suite::namespace);
        cases.put("watch", Suite::watch);
        cases.put("watch-history", Suite::watchHistory);
        cases.put("watch-options", Suite::watchOptions);
        cases.put("many-watches", Suite::manyWatches);
        cases.put("leases", Suite::leases);
        cases.put("lease-keeps-alive", Suite::leaseKeepsAlive);
        cases.put("upkeep", Suite::upkeep);
        cases.put("refusals", Suite::refusals);
        cases.put("at-once", Suite::atOnce);
        Suite suite = new Suite(words[0]);
        int failed = 0;
        for (Map.Entry<String, Case> entry : cases.entrySet()) {
            suite.prefix = "/java-" + entry.getKey() + "/";
            try {
                // Of an earlier run.
                get(suite.kv.delete(suite.key(""), DeleteOption.builder().isPrefix(true).build()));
                entry.getValue().run(suite);
                System.out.println("ok " + entry.getKey());
            } catch (Exception | AssertionError error) {
                failed++;
                String text = String.valueOf(error).replace("\n", " ");
                System.out.println("FAIL " + entry.getKey() + ": " + text);
            }
        }
        System.out.println("cases " + cases.size() + " failed " + failed);
        System.exit(failed > 0 ? 1 : 0);
    }
}
