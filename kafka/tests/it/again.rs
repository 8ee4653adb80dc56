//! Transactions that the broker gave up are written again from their copies.

use std::time::Duration;

use millstream_common::{Env, Execution, Generation};
use millstream_engine::sink::{Committable, Sink, SinkObjects, SinkWriter};
use millstream_kafka::sink::{KafkaSink, KafkaSinkOptions, LostTransactions};
use millstream_objects::{Purpose, Store, StoreEnvironment, StoreOptions};

use super::sink::{context, options, pre_commit, rows, schema, sink, tell, values};
use super::support::{bootstrap, brokers, create_topic, read, run, unique};

/// The broker gives up what is older.
const TIMEOUT: Duration = Duration::from_secs(3);

struct Job {
    env: Env,
    options: KafkaSinkOptions,
    store: Store,
    topic: String,
}

impl Job {
    async fn new(env: &Env) -> Self {
        let (topic, prefix) = (unique("again"), unique("again"));
        create_topic(&topic, 1).await;
        let mut options = options(&topic, &prefix);
        options.transaction_timeout = TIMEOUT;
        options.lost_transactions = LostTransactions::WriteAgain;
        let store = Store::open("memory://", &StoreOptions::default(), &StoreEnvironment::new(), env).unwrap();
        Self { env: env.clone(), options, store, topic }
    }

    fn sink(&self) -> KafkaSink {
        sink(&self.env, self.options.clone())
    }

    fn objects(&self) -> SinkObjects {
        SinkObjects::new(self.env.clone(), self.store.clone(), Generation(1), Execution(1))
    }

    async fn writer(&self) -> Box<dyn SinkWriter> {
        let mut context = context(0);
        (context.checkpoint_interval, context.checkpoint_timeout) =
            (Duration::from_millis(500), Duration::from_secs(1));
        context.objects = Some(self.objects());
        let mut writer = self.sink().writer(schema(), context).unwrap();
        tell(&mut *writer, 0, &[]).await;
        writer
    }

    /// By a process of its own.
    async fn recover(&self, all: &[Committable]) {
        let mut committer = self.sink().committer().unwrap();
        for committable in all {
            committer.recover(committable, &self.objects()).await.unwrap();
        }
    }

    fn values(&self) -> Vec<i64> {
        values(&read(&self.topic, 1))
    }

    /// Waits until the broker has given up the first of so many open transactions.
    async fn until_open(&self, left: usize) {
        let brokers = brokers(&self.env, &bootstrap());
        while brokers.ongoing_transactions(&self.options.transactional_id_prefix).await.unwrap().transactions.len()
            > left
        {
            self.env.sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The first epoch is given up, the second waits for its commit, the third was written behind both. Each is there once,
/// in order, however often and by whomever the job is recovered.
#[test]
fn what_was_given_up_and_what_follows_it_is_there_once_and_in_order() {
    run(|env| async move {
        let job = Job::new(&env).await;
        let mut writer = job.writer().await;
        writer.write(&rows(0..5)).await.unwrap();
        let first = pre_commit(&mut *writer, 1).await;
        env.sleep(TIMEOUT / 2).await;
        writer.write(&rows(5..9)).await.unwrap();
        writer.write(&rows(9..12)).await.unwrap();
        let second = pre_commit(&mut *writer, 2).await;
        assert!(!first.kept.is_empty() && !second.kept.is_empty());
        job.until_open(1).await;
        // A subtask writes: it would write between them.
        let mut running = job.sink().committer().unwrap();
        let not_now = running.commit(&first).await.unwrap_err();
        assert!(!not_now.is_final() && not_now.number() == 2446, "{not_now}");
        assert_eq!(job.values(), [0; 0]);

        let listed = [first, second];
        job.recover(&listed).await;
        assert_eq!(job.values(), (0..12).collect::<Vec<_>>());
        // The confirmation is lost.
        job.recover(&listed).await;
        job.recover(&listed[1..]).await;
        assert_eq!(job.values(), (0..12).collect::<Vec<_>>());
        job.until_open(0).await;
    });
}

/// What was committed stays, and nothing that follows is written again for that.
#[test]
fn what_is_not_lost_is_committed_as_it_is() {
    run(|env| async move {
        let job = Job::new(&env).await;
        let mut writer = job.writer().await;
        writer.write(&rows(0..3)).await.unwrap();
        let first = pre_commit(&mut *writer, 1).await;
        job.sink().committer().unwrap().commit(&first).await.unwrap();
        writer.write(&rows(3..6)).await.unwrap();
        let second = pre_commit(&mut *writer, 2).await;
        job.recover(&[first.clone(), second.clone()]).await;
        job.recover(&[first, second]).await;
        assert_eq!(job.values(), (0..6).collect::<Vec<_>>());
    });
}

/// A copy that is gone is no reason to go on without its rows.
#[test]
fn without_its_copy_it_is_lost_loudly() {
    run(|env| async move {
        let job = Job::new(&env).await;
        let mut writer = job.writer().await;
        writer.write(&rows(0..5)).await.unwrap();
        let first = pre_commit(&mut *writer, 1).await;
        job.until_open(0).await;
        let (mut committer, objects) = (job.sink().committer().unwrap(), job.objects());
        // It was written when nothing was kept.
        let bare = Committable { kept: Vec::new(), ..first.clone() };
        assert_eq!(committer.recover(&bare, &objects).await.unwrap_err().number(), 3333);
        // The setting was taken back: the error says that there is a copy.
        let mut options = job.options.clone();
        options.lost_transactions = LostTransactions::Fail;
        let mut failing = sink(&env, options).committer().unwrap();
        let error = failing.recover(&first, &objects).await.unwrap_err();
        assert!(error.number() == 3333 && error.to_string().contains("a copy of these rows was kept"), "{error}");
        // Somebody deleted it.
        let path = format!("data/{}", first.kept[0].object);
        job.store.delete_all(&[path], Purpose::Output).await.unwrap();
        assert_eq!(committer.recover(&first, &objects).await.unwrap_err().number(), 4331);
        assert_eq!(job.values(), [0; 0]);
    });
}
