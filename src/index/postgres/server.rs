//! The PostgreSQL server behind the index: a few connections, a deadline for each call, and whether it answers.
//!
//! A pooler may stand before the server, such as PgBouncer in transaction mode. It gives each transaction any of its
//! connections, so nothing here belongs to a session: no prepared statement has a name (`query_typed` and
//! `execute_typed` send an unnamed one with its values, in one round trip;
//! <https://github.com/rust-postgres/rust-postgres/issues/1202>), nothing is set outside a transaction, and nothing is
//! set when a connection begins (PgBouncer refuses most of these parameters;
//! <https://github.com/pgbouncer/pgbouncer/issues/525>).
//!
//! The server ends by itself what takes too long, before anybody here gives up: a server does not notice that a
//! client has left while it works for it
//! (<https://www.postgresql.org/docs/15/runtime-config-connection.html#GUC-CLIENT-CONNECTION-CHECK-INTERVAL>). So all work is
//! in transactions, whose deadlines end with them. A request to cancel would not do: PgBouncer before 1.18 may hand it to
//! the query of another client (<https://github.com/pgbouncer/pgbouncer/pull/717>).

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot, watch};
use tokio_postgres::Client;

use super::super::IndexError;
use super::connect::{Address, Connector};
use super::errors::{from_pool, is_conflict, is_doubtful, is_harmless, is_lost};
use crate::clock::Instant;

/// Most connections. A pooler or the server has few (100 by default), for all replicas together.
const CONNECTIONS: usize = 8;
/// How long a connection may take to begin, and a transaction to end that has nothing more to do.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a call that a client waits for may take.
pub const SOON: Duration = Duration::from_secs(3);
/// How long work of upkeep may take.
pub const LONG: Duration = Duration::from_secs(30);
/// How often a transaction is tried that the server broke off for the sake of another.
const TRIES: u32 = 5;
/// The part of the time for some work that the server has for one statement. Less than all, so that its answer comes
/// before the caller gives up.
const FOR_STATEMENT: f64 = 0.8;
/// The part in which it may wait for a lock. Less than for the statement, so that the answer says what it was.
const FOR_LOCK: f64 = 0.6;
/// The part that may pass while all connections are in use.
const FOR_TURN: f64 = 0.8;

/// Whether the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was not asked yet.
    Starting,
    Well,
    /// It can be read, and takes no changes now; the text says why.
    Refusing(String),
    /// It does not answer, or not as it should; the text says why. Calls fail at once.
    Away(String),
}

/// The server; clones share its connections.
#[derive(Clone)]
pub struct Server {
    pool: Pool,
    connector: Connector,
    state: Arc<watch::Sender<State>>,
    doubt: Arc<Notify>,
    /// How long a call that a client waits for may take.
    pub soon: Duration,
}

/// What to do with a connection: one or several statements.
pub type Work<'a, T> = BoxFuture<'a, Result<T, IndexError>>;

impl Server {
    /// Prepares to connect to a server. Asks it nothing yet.
    pub fn new(address: Address, soon: Duration) -> Result<Self, IndexError> {
        let config = address.config.clone();
        let connector = Connector::new(address);
        // "Fast" looks whether the connection is closed, and sends nothing.
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let pool = Pool::builder(Manager::from_connect(config, connector.clone(), recycling))
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| IndexError::Server(error.to_string()))?;
        let (state, doubt) = (Arc::new(watch::Sender::new(State::Starting)), Arc::default());
        Ok(Self { pool, connector, state, doubt, soon })
    }

    /// Returns why the server does not answer, or takes no changes; `None` if it does, or was not asked yet.
    pub fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Away(why) | State::Refusing(why) => Some(why.clone()),
            State::Starting | State::Well => None,
        }
    }

    /// Returns what changes when the server goes away or comes back.
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Notes that the server answers. Only writes show whether it takes changes.
    pub fn answers(&self) {
        self.become_if(State::Well, |now| matches!(now, State::Starting | State::Away(_)));
    }

    /// Notes that the server does not answer. Returns whether it did until now.
    pub fn goes_away(&self, why: String) -> bool {
        let did = matches!(&*self.state.borrow(), State::Well | State::Refusing(_));
        self.become_if(State::Away(why), |_| true);
        did
    }

    /// Notes that the server takes no changes, though it answers.
    pub fn refuses(&self, why: String) {
        self.become_if(State::Refusing(why), |now| matches!(now, State::Well | State::Refusing(_)));
    }

    /// Notes that the server has taken changes.
    pub fn takes_changes(&self) {
        self.become_if(State::Well, |now| matches!(now, State::Refusing(_)));
    }

    fn become_if(&self, state: State, may: impl FnOnce(&State) -> bool) {
        self.state.send_if_modified(|now| {
            if *now == state || !may(now) {
                return false;
            }
            match (&*now, &state) {
                (State::Away(_), State::Well) => tracing::info!("the index is there again"),
                (State::Refusing(_), State::Well) => tracing::info!("the index takes changes again"),
                (State::Well, State::Refusing(why)) => {
                    tracing::error!(%why, "the index takes no changes; what it knows is used, and changes wait");
                }
                (State::Starting | State::Well | State::Refusing(_), State::Away(why)) => {
                    tracing::error!(%why, "the index is away; what is cached is served as far as it is known, changes wait");
                }
                _ => {}
            }
            *now = state;
            true
        });
    }

    /// Waits until there is reason to look whether the server still answers. For one waiter.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Does work that changes nothing, within a time. If a connection broke meanwhile, does it once more by another.
    /// Ends as soon as it is known that the server is away.
    pub async fn read<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let deadline = Instant::now() + time;
        self.known(deadline).await?;
        let read = async {
            match self.read_once(deadline, work.clone()).await {
                Err(error) if is_lost(&error) => self.read_once(deadline, work).await,
                result => result,
            }
        };
        let result = tokio::select! {
            result = read => result,
            error = self.away() => return Err(error),
        };
        self.judge(&result);
        result
    }

    /// Does work in a transaction, within a time. Work that the server breaks off for the sake of another transaction is
    /// done anew, a few times, while there is enough time.
    pub async fn change<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        self.change_in_parts(time, time, work).await
    }

    /// Like [`Self::change`]. `each`: the time for a part of the work.
    pub async fn change_in_parts<T: Send + 'static>(
        &self,
        time: Duration,
        each: Duration,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let deadline = Instant::now() + time;
        self.known(deadline).await?;
        let mut tries = 0;
        let result = loop {
            let result = self.change_once(deadline, each, work.clone()).await;
            tries += 1;
            match result {
                // With less time, it would end as late, which says nothing about why.
                Err(error) if is_conflict(&error) && tries < TRIES && left(deadline) >= each / 2 => {
                    let pause = Duration::from_millis(10 * u64::from(tries)).mul_f64(crate::random::fraction());
                    tokio::time::sleep(pause).await;
                }
                result => break result,
            }
        };
        self.judge(&result);
        result
    }

    /// Does work in a transaction by a connection of its own, which waits for no other work. Also where the server is
    /// said to be away; says nothing about that itself.
    pub async fn look<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let look = async {
            let client = self.connector.begin().await?;
            transaction(&client, left(deadline), work).await
        };
        tokio::time::timeout_at(deadline, look).await.map_err(|_| IndexError::Late)?
    }

    /// Changes by one connection. The caller may leave: the work goes on until its deadline, and its connection serves
    /// again. A connection whose work did not end in time is closed.
    async fn change_once<T: Send + 'static>(
        &self,
        deadline: Instant,
        each: Duration,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let mut lease = self.lease(deadline).await?;
        let time = each.min(left(deadline));
        // As many of these tasks as connections.
        let task = tokio::spawn(async move {
            let changed = tokio::time::timeout_at(deadline, transaction(lease.client()?, time, work)).await;
            let result = changed.unwrap_or(Err(IndexError::Late));
            if result.as_ref().err().is_none_or(is_harmless) {
                lease.give_back();
            }
            result
        });
        task.await.map_err(broke_off)?
    }

    /// Reads by one connection, likewise. The transaction costs no round trip: its begin is sent together with the first
    /// statement, and nobody waits for its end.
    async fn read_once<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let mut lease = self.lease(deadline).await?;
        let begin = begin(left(deadline), " READ ONLY");
        let (sender, answer) = oneshot::channel();
        let task = tokio::spawn(async move {
            let client = lease.client()?;
            let read = async {
                let (begun, result) = tokio::join!(biased; client.batch_execute(&begin), work(client));
                begun?;
                result
            };
            let result = tokio::time::timeout_at(deadline, read).await.unwrap_or(Err(IndexError::Late));
            let is_usable = result.as_ref().err().is_none_or(is_harmless);
            let _ = sender.send(result);
            // After an error, this is a rollback.
            if is_usable && end(client, "COMMIT").await.is_ok() {
                lease.give_back();
            }
            Ok::<_, IndexError>(())
        });
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(task.await.map_err(broke_off)?.err().unwrap_or(IndexError::Closed)),
        }
    }

    /// Takes a connection. Where all are in use, that is no sign that the server is away.
    async fn lease(&self, deadline: Instant) -> Result<Lease, IndexError> {
        let turn = left(deadline).mul_f64(FOR_TURN);
        let timeouts = Timeouts { wait: Some(turn), create: Some(CONNECT), recycle: Some(CONNECT) };
        let object = tokio::time::timeout_at(deadline, self.pool.timeout_get(&timeouts)).await;
        Ok(Lease(Some(object.map_err(|_| IndexError::Late)?.map_err(from_pool)?)))
    }

    /// Waits until it is known whether the server answers; fails if it does not.
    pub async fn known(&self, deadline: Instant) -> Result<(), IndexError> {
        let mut states = self.state.subscribe();
        let known = states.wait_for(|state| *state != State::Starting);
        match tokio::time::timeout_at(deadline, known).await {
            Ok(Ok(state)) => match &*state {
                State::Away(why) => Err(IndexError::Away(why.clone())),
                State::Starting | State::Well | State::Refusing(_) => Ok(()),
            },
            Ok(Err(_)) => Err(IndexError::Closed),
            Err(_) => Err(IndexError::Late),
        }
    }

    /// Waits until the server is away. Returns why.
    async fn away(&self) -> IndexError {
        self.becomes(|state| matches!(state, State::Away(_))).await
    }

    /// Waits until the server is away or takes no changes. Returns why.
    pub async fn takes_nothing(&self) -> IndexError {
        self.becomes(|state| matches!(state, State::Away(_) | State::Refusing(_))).await
    }

    async fn becomes(&self, is_it: impl FnMut(&State) -> bool) -> IndexError {
        let mut states = self.state.subscribe();
        match states.wait_for(is_it).await.as_deref() {
            Ok(State::Away(why) | State::Refusing(why)) => IndexError::Away(why.clone()),
            _ => IndexError::Closed,
        }
    }

    /// Asks for a look at the server, if a result gives reason to doubt that it answers. One call that failed says
    /// little: its connection may have been ended, or its statement may have been slow.
    fn judge<T>(&self, result: &Result<T, IndexError>) {
        if result.as_ref().is_err_and(is_doubtful) {
            self.doubt.notify_one();
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn broke_off(error: tokio::task::JoinError) -> IndexError {
    IndexError::Io(std::io::Error::other(error))
}

/// Returns the SQL that begins a transaction whose statements may take so long. The deadlines end with it, so a pooler
/// takes nothing of them to others.
fn begin(time: Duration, mode: &str) -> String {
    // Also where this process or the network hangs, the server gives up what nobody waits for any more. Each statement
    // sees what was written before it began, whatever the database's default is.
    let milliseconds = |part: f64| time.mul_f64(part).as_millis().clamp(1, 600_000);
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED{mode}; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = 10000",
        milliseconds(FOR_STATEMENT),
        milliseconds(FOR_LOCK)
    )
}

/// Runs work in a transaction.
async fn transaction<T>(
    client: &Client,
    time: Duration,
    work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Send,
) -> Result<T, IndexError> {
    client.batch_execute(&begin(time, "")).await?;
    let done = work(client).await;
    match &done {
        Ok(_) => client.batch_execute("COMMIT").await?,
        // A connection that cannot even do this is closed.
        Err(error) if is_harmless(error) => end(client, "ROLLBACK").await?,
        // The answer to a statement is still to come, and this would wait behind it.
        Err(_) => {}
    }
    done
}

/// Ends a transaction that has nothing more to do.
async fn end(client: &Client, how: &str) -> Result<(), IndexError> {
    in_time(CONNECT, async { Ok(client.batch_execute(how).await?) }).await
}

/// Waits for a part of some work, for so long at most.
pub async fn in_time<T>(time: Duration, part: impl Future<Output = Result<T, IndexError>>) -> Result<T, IndexError> {
    tokio::time::timeout(time, part).await.map_err(|_| IndexError::Late)?
}

/// A connection in use. It is closed if it is dropped before it was given back: an answer may still be on its way.
struct Lease(Option<Object>);

impl Lease {
    fn client(&self) -> Result<&Client, IndexError> {
        let object = self.0.as_ref().ok_or(IndexError::Closed)?;
        Ok(object)
    }

    fn give_back(&mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
