//! Rust's etcd-client, every API of it that one member without users can serve. Run: HOST:PORT.

use etcd_client::{
    Client, Compare, CompareOp, CompactionOptions, ConnectOptions, DeleteOptions, Error, EventType,
    GetOptions, KvClientPrefix, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions, WatchStream,
};
use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

const CASE_SECONDS: u64 = 30;

#[derive(Debug)]
struct Failure(#[allow(dead_code)] String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(error.to_string())
    }
}

type Done = Result<(), Failure>;

fn equal<A: Debug + PartialEq<B>, B: Debug>(what: &str, found: A, expected: B) -> Done {
    if found == expected {
        return Ok(());
    }
    Err(Failure(format!("{what}: {found:?}, expected {expected:?}")))
}

fn holds(what: &str, so: bool) -> Done {
    equal(what, so, true)
}

fn refused<A: Debug>(answer: Result<A, Error>, text: &str) -> Done {
    match answer {
        Err(error) if error.to_string().contains(text) => Ok(()),
        other => Err(Failure(format!("{other:?}, expected {text}"))),
    }
}

/// What a case works with: a client, and a prefix of its own.
#[derive(Clone)]
struct T {
    client: Client,
    prefix: String,
}

impl T {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn put(&mut self, name: &str, value: &str) -> Result<i64, Failure> {
        let answer = self.client.put(self.key(name), value, None).await?;
        Ok(answer.header().unwrap().revision())
    }

    async fn value(&mut self, name: &str) -> Result<Option<String>, Failure> {
        let answer = self.client.get(self.key(name), None).await?;
        Ok(answer.kvs().first().map(|kv| kv.value_str().unwrap().to_string()))
    }

    /// Opens a watch and waits until the server says that it is there.
    async fn watch(&mut self, name: &str, options: WatchOptions) -> Result<WatchStream, Failure> {
        let mut stream = self.client.watch(self.key(name), Some(options)).await?;
        holds("created", stream.message().await?.unwrap().created())?;
        Ok(stream)
    }
}

/// This many events of a stream, as words.
async fn events(stream: &mut WatchStream, count: usize) -> Result<String, Failure> {
    let mut words = Vec::new();
    while words.len() < count {
        let answer = stream.message().await?.ok_or(Failure("the stream ended".into()))?;
        for event in answer.events() {
            let kv = event.kv().unwrap();
            let name = kv.key_str()?.rsplit('/').next().unwrap();
            words.push(match event.event_type() {
                EventType::Put => format!("put {name}={}", kv.value_str()?),
                EventType::Delete => format!("delete {name}"),
            });
        }
    }
    Ok(words.join(", "))
}

async fn put_get_delete(mut t: T) -> Done {
    t.put("a", "1").await?;
    equal("value", t.value("a").await?.as_deref(), Some("1"))?;
    let previous = PutOptions::new().with_prev_key();
    let answer = t.client.put(t.key("a"), "2", Some(previous)).await?;
    equal("previous", answer.prev_key().unwrap().value(), b"1")?;
    let all = DeleteOptions::new().with_prev_key();
    let answer = t.client.delete(t.key("a"), Some(all)).await?;
    equal("deleted", answer.deleted(), 1)?;
    equal("what it was", answer.prev_kvs()[0].value(), b"2")?;
    equal("gone", t.value("a").await?, None)
}

async fn ranges(mut t: T) -> Done {
    for i in 0..9 {
        t.put(&i.to_string(), &(9 - i).to_string()).await?;
    }
    let prefix = GetOptions::new().with_prefix();
    let answer = t.client.get(t.key(""), Some(prefix.clone())).await?;
    equal("count", (answer.count(), answer.more()), (9, false))?;
    let top = prefix.clone().with_sort(SortTarget::Value, SortOrder::Ascend).with_limit(2);
    let answer = t.client.get(t.key(""), Some(top)).await?;
    equal("least values", answer.kvs()[1].value(), b"2")?;
    equal("more", (answer.kvs().len(), answer.more()), (2, true))?;
    let counted = t.client.get(t.key(""), Some(prefix.clone().with_count_only())).await?;
    equal("only counted", (counted.kvs().len(), counted.count()), (0, 9))?;
    let bare = t.client.get(t.key(""), Some(prefix.clone().with_keys_only())).await?;
    equal("keys only", bare.kvs()[0].value(), b"")?;
    let span = GetOptions::new().with_range(t.key("5")).with_serializable();
    equal("range", t.client.get(t.key("2"), Some(span)).await?.count(), 3)?;
    let from = GetOptions::new().with_from_key().with_limit(1);
    equal("from key", t.client.get(t.key("8"), Some(from)).await?.kvs()[0].value(), b"1")?;
    let gone = DeleteOptions::new().with_prefix();
    equal("deleted", t.client.delete(t.key(""), Some(gone)).await?.deleted(), 9)
}

async fn revisions(mut t: T) -> Done {
    let first = t.put("a", "1").await?;
    let last = t.put("a", "2").await?;
    let then = GetOptions::new().with_revision(first);
    let answer = t.client.get(t.key("a"), Some(then.clone())).await?;
    equal("then", answer.kvs()[0].value(), b"1")?;
    let recent = GetOptions::new().with_prefix().with_min_mod_revision(last);
    equal("recent", t.client.get(t.key(""), Some(recent)).await?.kvs().len(), 1)?;
    t.client.compact(last, Some(CompactionOptions::new().with_physical())).await?;
    refused(t.client.get(t.key("a"), Some(then)).await, "has been compacted")?;
    let future = GetOptions::new().with_revision(last + 1000);
    refused(t.client.get(t.key("a"), Some(future)).await, "is a future revision")
}

async fn transactions(mut t: T) -> Done {
    t.put("a", "1").await?;
    let txn = Txn::new()
        .when(vec![
            Compare::value(t.key("a"), CompareOp::Equal, "1"),
            Compare::version(t.key("a"), CompareOp::Greater, 0),
            Compare::create_revision(t.key("none"), CompareOp::Equal, 0),
            Compare::lease(t.key("a"), CompareOp::Equal, 0),
            Compare::mod_revision(t.key("a"), CompareOp::NotEqual, 0),
        ])
        .and_then(vec![
            TxnOp::put(t.key("b"), "2", None),
            TxnOp::get(t.key("a"), None),
            TxnOp::delete(t.key("a"), None),
            TxnOp::txn(Txn::new().and_then(vec![TxnOp::put(t.key("c"), "3", None)])),
        ])
        .or_else(vec![TxnOp::put(t.key("b"), "wrong", None)]);
    let answer = t.client.txn(txn).await?;
    holds("succeeded", answer.succeeded())?;
    match &answer.op_responses()[1] {
        TxnOpResponse::Get(got) => equal("read", got.kvs()[0].value(), b"1")?,
        other => return Err(Failure(format!("{other:?}"))),
    }
    let values = (t.value("a").await?, t.value("b").await?, t.value("c").await?);
    equal("values", values, (None, Some("2".to_string()), Some("3".to_string())))
}

async fn namespace(mut t: T) -> Done {
    let mut inside = KvClientPrefix::new(t.client.kv_client(), t.prefix.clone().into());
    inside.put("a", "1", None).await?;
    equal("outside", t.value("a").await?.as_deref(), Some("1"))?;
    equal("inside", inside.get("a", None).await?.kvs()[0].key(), b"a")?;
    equal("deleted", inside.delete("a", None).await?.deleted(), 1)
}

async fn watch(mut t: T) -> Done {
    let mut stream = t.watch("", WatchOptions::new().with_prefix().with_prev_key()).await?;
    for i in 0..3 {
        t.put(&i.to_string(), "x").await?;
    }
    t.client.delete(t.key("0"), None).await?;
    equal("events", events(&mut stream, 4).await?, "put 0=x, put 1=x, put 2=x, delete 0")?;
    stream.request_progress().await?;
    let progress = stream.message().await?.unwrap();
    equal("progress", (progress.watch_id(), progress.events().len()), (-1, 0))
}

async fn watch_history(mut t: T) -> Done {
    let first = t.put("a", "1").await?;
    let last = t.put("a", "2").await?;
    let since = WatchOptions::new().with_start_revision(first);
    let mut stream = t.watch("a", since.clone()).await?;
    equal("history", events(&mut stream, 2).await?, "put a=1, put a=2")?;
    t.client.compact(last, None).await?;
    let mut late = t.watch("a", since).await?;
    let answer = late.message().await?.unwrap();
    holds("cancelled", answer.canceled())?;
    equal("compact revision", answer.compact_revision(), last)
}

async fn watch_filters_and_ids(mut t: T) -> Done {
    let filters = vec![WatchFilterType::NoPut];
    let options = WatchOptions::new().with_filters(filters).with_watch_id(77).with_fragment();
    let mut stream = t.watch("a", options).await?;
    stream.watch(t.key("b"), Some(WatchOptions::new().with_progress_notify())).await?;
    let second = stream.message().await?.unwrap();
    holds("a second of the stream", second.created() && second.watch_id() != 77)?;
    t.put("a", "1").await?;
    t.client.delete(t.key("a"), None).await?;
    equal("deletes only", events(&mut stream, 1).await?, "delete a")?;
    stream.cancel(77).await?;
    let answer = stream.message().await?.unwrap();
    equal("cancelled", (answer.watch_id(), answer.canceled()), (77, true))?;
    t.put("b", "1").await?;
    equal("the other goes on", events(&mut stream, 1).await?, "put b=1")
}

async fn leases(mut t: T) -> Done {
    let given = LeaseGrantOptions::new().with_id(555_000_111);
    let lease = t.client.lease_grant(60, Some(given.clone())).await?.id();
    equal("id", lease, 555_000_111)?;
    refused(t.client.lease_grant(60, Some(given)).await, "lease already exists")?;
    let attached = PutOptions::new().with_lease(lease);
    t.client.put(t.key("a"), "1", Some(attached)).await?;
    let keys = LeaseTimeToLiveOptions::new().with_keys();
    let left = t.client.lease_time_to_live(lease, Some(keys)).await?;
    equal("keys", left.keys(), [t.key("a").into_bytes()])?;
    equal("granted", left.granted_ttl(), 60)?;
    let (mut keeper, mut stream) = t.client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    equal("kept alive", stream.message().await?.unwrap().ttl(), 60)?;
    let listed = t.client.leases().await?;
    holds("listed", listed.leases().iter().any(|entry| entry.id() == lease))?;
    t.client.lease_revoke(lease).await?;
    equal("its key", t.value("a").await?, None)?;
    refused(t.client.lease_revoke(lease).await, "requested lease not found")
}

async fn lease_expires(mut t: T) -> Done {
    let lease = t.client.lease_grant(1, None).await?.id();
    let attached = PutOptions::new().with_lease(lease);
    t.client.put(t.key("a"), "1", Some(attached)).await?;
    while t.value("a").await?.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    equal("ttl", t.client.lease_time_to_live(lease, None).await?.ttl(), -1)
}

async fn upkeep(mut t: T) -> Done {
    let status = t.client.status().await?;
    holds(status.version(), status.version().starts_with("3."))?;
    holds("sizes", status.db_size() > 0 && status.raft_index() > 0 && status.raft_term() > 0)?;
    let members = t.client.member_list().await?;
    equal("members", members.members().len(), 1)?;
    equal("leader", status.leader(), members.members()[0].id())?;
    t.client.hash().await?;
    t.client.hash_kv(0).await?;
    t.client.defragment().await?;
    Ok(())
}

async fn required_leader(t: T) -> Done {
    let options = ConnectOptions::new()
        .with_require_leader(true)
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(2))
        .with_keep_alive_while_idle(true);
    let endpoint = std::env::args().nth(1).unwrap();
    let mut client = Client::connect([endpoint], Some(options)).await?;
    client.put(t.key("a"), "1", None).await?;
    Ok(())
}

async fn refusals(mut t: T) -> Done {
    refused(t.client.put("", "x", None).await, "key is not provided")?;
    let unknown = PutOptions::new().with_lease(77);
    refused(t.client.put(t.key("a"), "", Some(unknown)).await, "requested lease not found")
}

async fn at_once(t: T) -> Done {
    let mut tasks = Vec::new();
    for worker in 0..20 {
        let mut t = t.clone();
        tasks.push(tokio::spawn(async move {
            for i in 0..50 {
                t.put(&format!("{worker}-{i}"), "x").await?;
            }
            Ok::<(), Failure>(())
        }));
    }
    for task in tasks {
        task.await.map_err(|error| Failure(error.to_string()))??;
    }
    let mut t = t;
    let count = GetOptions::new().with_prefix().with_count_only();
    equal("keys", t.client.get(t.key(""), Some(count)).await?.count(), 1000)
}

struct Suite {
    client: Client,
    count: u32,
    failed: u32,
}

impl Suite {
    async fn case<F: Future<Output = Done>>(&mut self, name: &str, run: fn(T) -> F) {
        let begun = Instant::now();
        let mut t = T { client: self.client.clone(), prefix: format!("/rust-{name}/") };
        let wipe = DeleteOptions::new().with_prefix();
        let run = async move {
            t.client.delete(t.key(""), Some(wipe)).await?; // of an earlier run
            run(t).await
        };
        self.count += 1;
        let bound = Duration::from_secs(CASE_SECONDS);
        match tokio::time::timeout(bound, run).await {
            Ok(Ok(())) => println!("ok {name} {:.3}", begun.elapsed().as_secs_f64()),
            Ok(Err(Failure(text))) => {
                self.failed += 1;
                println!("FAIL {name}: {text}");
            }
            Err(_) => {
                self.failed += 1;
                println!("FAIL {name}: not done in {CASE_SECONDS} s");
            }
        }
    }
}

#[tokio::main]
async fn main() {
    let endpoint = std::env::args().nth(1).expect("HOST:PORT");
    let client = Client::connect([endpoint], None).await.expect("connect");
    let mut suite = Suite { client, count: 0, failed: 0 };
    suite.case("put-get-delete", put_get_delete).await;
    suite.case("ranges", ranges).await;
    suite.case("revisions", revisions).await;
    suite.case("transactions", transactions).await;
    suite.case("namespace", namespace).await;
    suite.case("watch", watch).await;
    suite.case("watch-history", watch_history).await;
    suite.case("watch-filters-and-ids", watch_filters_and_ids).await;
    suite.case("leases", leases).await;
    suite.case("lease-expires", lease_expires).await;
    suite.case("upkeep", upkeep).await;
    suite.case("required-leader", required_leader).await;
    suite.case("refusals", refusals).await;
    suite.case("at-once", at_once).await;
    println!("cases {} failed {}", suite.count, suite.failed);
    std::process::exit((suite.failed > 0) as i32);
}
