//! The PostgreSQL server behind the index: a few connections, a deadline for each call, and whether it answers.
//!
//! A pooler may stand before the server, such as PgBouncer in transaction mode. It gives each transaction any of its
//! connections, so nothing here belongs to a session: no prepared statement has a name (`query_typed` and
//! `execute_typed` send an unnamed one with its values, in one round trip;
//! <https://github.com/rust-postgres/rust-postgres/issues/1202>), nothing is set outside a transaction, and nothing is
//! set when a connection begins (PgBouncer refuses most of these parameters;
//! <https://github.com/pgbouncer/pgbouncer/issues/525>).

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::IndexError;
use super::connect::{Address, Connector};
use crate::clock::Instant;

/// Most connections. A pooler or the server has few (100 by default), for all replicas together.
const CONNECTIONS: usize = 8;
/// How long a connection may take to begin.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a call that a client waits for may take.
pub const SOON: Duration = Duration::from_secs(3);
/// How long work of upkeep may take.
pub const LONG: Duration = Duration::from_secs(30);
/// How often a transaction is tried that the server broke off for the sake of another.
const TRIES: u32 = 5;

/// Whether the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was not asked yet.
    Starting,
    Well,
    /// It does not answer, or not as it should; the text says why. Calls fail at once.
    Away(String),
}

/// The server; clones share its connections.
#[derive(Clone)]
pub struct Server {
    pool: Pool,
    state: Arc<watch::Sender<State>>,
    /// How long a call that a client waits for may take.
    pub soon: Duration,
}

/// What to do with a connection: one or several statements.
pub type Work<'a, T> = BoxFuture<'a, Result<T, IndexError>>;

impl Server {
    /// Prepares to connect to a server. Asks it nothing yet.
    pub fn new(address: Address, soon: Duration) -> Result<Self, IndexError> {
        let config = address.config.clone();
        let connector = Connector::new(address)?;
        // "Fast" looks whether the connection is closed, and sends nothing.
        let manager =
            Manager::from_connect(config, connector, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .create_timeout(Some(CONNECT))
            .recycle_timeout(Some(CONNECT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| IndexError::Server(error.to_string()))?;
        Ok(Self { pool, state: Arc::new(watch::Sender::new(State::Starting)), soon })
    }

    /// Returns why the server does not answer; `None` if it does, or was not asked yet.
    pub fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Away(why) => Some(why.clone()),
            State::Starting | State::Well => None,
        }
    }

    /// Returns what changes when the server goes away or comes back.
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Notes whether the server answers.
    pub fn set(&self, state: State) {
        self.state.send_if_modified(|now| {
            if *now == state {
                return false;
            }
            match (&*now, &state) {
                (State::Away(_), State::Well) => tracing::info!("the index is there again"),
                (State::Starting | State::Well, State::Away(why)) => {
                    tracing::error!(%why, "the index is away; what is cached is served as far as it is known, changes wait");
                }
                _ => {}
            }
            *now = state;
            true
        });
    }

    /// Does work that changes nothing, within a time. If a connection broke meanwhile, does it once more by another.
    pub async fn read<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let deadline = Instant::now() + time;
        self.known(deadline).await?;
        let mut result = self.once(deadline, work.clone()).await;
        if matches!(&result, Err(error) if is_lost(error)) {
            result = self.once(deadline, work).await;
        }
        self.judge(&result);
        result
    }

    /// Does work in a transaction, within a time. Work that the server breaks off for the sake of another transaction is
    /// done anew, a few times.
    pub async fn change<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let deadline = Instant::now() + time;
        self.known(deadline).await?;
        let result = self.change_by(deadline, work).await;
        self.judge(&result);
        result
    }

    /// Like [`Self::change`], also while the server is said to be away. Does not say that it is.
    pub async fn change_by<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Clone + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let mut tries = 0;
        loop {
            let work = work.clone();
            let time = deadline.saturating_duration_since(Instant::now());
            let result = self.once(deadline, move |client| Box::pin(transaction(client, time, work.clone()))).await;
            tries += 1;
            match result {
                Err(error) if is_conflict(&error) && tries < TRIES => {
                    let pause = Duration::from_millis(10 * u64::from(tries)).mul_f64(crate::random::fraction());
                    tokio::time::sleep(pause).await;
                }
                result => return result,
            }
        }
    }

    /// Does work by one connection. The caller may leave: the work goes on until its deadline, and its connection
    /// serves again. A connection whose work did not end in time is closed.
    async fn once<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let object = tokio::time::timeout_at(deadline, self.pool.get()).await.map_err(|_| late())?;
        let lease = Lease(Some(object.map_err(from_pool)?));
        // As many of these tasks as connections.
        let task = tokio::spawn(async move {
            let mut lease = lease;
            let client = lease.0.as_ref().ok_or_else(late)?;
            let result = tokio::time::timeout_at(deadline, work(client)).await.map_err(|_| late())?;
            if result.as_ref().err().is_none_or(is_harmless) {
                lease.give_back();
            }
            result
        });
        task.await.map_err(|error| IndexError::Io(std::io::Error::other(error)))?
    }

    /// Waits until it is known whether the server answers; fails if it does not.
    pub async fn known(&self, deadline: Instant) -> Result<(), IndexError> {
        let mut states = self.state.subscribe();
        let known = states.wait_for(|state| *state != State::Starting);
        match tokio::time::timeout_at(deadline, known).await {
            Ok(Ok(state)) => match &*state {
                State::Away(why) => Err(IndexError::Away(why.clone())),
                State::Starting | State::Well => Ok(()),
            },
            Ok(Err(_)) => Err(IndexError::Closed),
            Err(_) => Err(late()),
        }
    }

    /// Waits until the server is away. Returns why.
    pub async fn away(&self) -> IndexError {
        let mut states = self.state.subscribe();
        match states.wait_for(|state| matches!(state, State::Away(_))).await.as_deref() {
            Ok(State::Away(why)) => IndexError::Away(why.clone()),
            _ => IndexError::Closed,
        }
    }

    /// Notes that the server is away, if a result shows that.
    fn judge<T>(&self, result: &Result<T, IndexError>) {
        if let Err(error) = result
            && is_away(error)
        {
            self.set(State::Away(error.to_string()));
        }
    }
}

/// Runs work in a transaction. The deadlines that are set for it end with it, so a pooler takes nothing of them to
/// others.
async fn transaction<T>(
    client: &Client,
    time: Duration,
    work: impl for<'a> Fn(&'a Client) -> Work<'a, T> + Send,
) -> Result<T, IndexError> {
    // The server gives up by itself what nobody waits for any more: also if this process or the network hangs while it
    // holds locks.
    let milliseconds = time.as_millis().clamp(1, 600_000);
    let begin = format!(
        "BEGIN; SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = {milliseconds}; \
         SET LOCAL idle_in_transaction_session_timeout = 10000"
    );
    client.batch_execute(&begin).await?;
    let done = work(client).await;
    if done.is_ok() {
        client.batch_execute("COMMIT").await?;
    } else {
        // A connection that cannot even do this is closed.
        client.batch_execute("ROLLBACK").await?;
    }
    done
}

/// Waits for a part of some work, for so long at most.
pub async fn in_time<T>(time: Duration, part: impl Future<Output = Result<T, IndexError>>) -> Result<T, IndexError> {
    tokio::time::timeout(time, part).await.map_err(|_| late())?
}

/// A connection in use. It is closed if it is dropped before it was given back: an answer may still be on its way.
struct Lease(Option<Object>);

impl Lease {
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

/// Returns the error that something took too long.
pub fn late() -> IndexError {
    IndexError::Away("index.url: the server does not answer in time".to_owned())
}

fn from_pool(error: PoolError) -> IndexError {
    match error {
        PoolError::Backend(error) => IndexError::Postgres(error),
        PoolError::Closed => IndexError::Closed,
        PoolError::Timeout(_) => late(),
        other => IndexError::Server(other.to_string()),
    }
}

fn code(error: &IndexError) -> Option<&SqlState> {
    match error {
        IndexError::Postgres(error) => error.code(),
        _ => None,
    }
}

/// Returns whether another transaction was in the way: a deadlock, or a lock that was held too long.
fn is_conflict(error: &IndexError) -> bool {
    const CODES: [SqlState; 3] =
        [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::LOCK_NOT_AVAILABLE];
    code(error).is_some_and(|code| CODES.contains(code))
}

/// Returns whether the connection is of no more use: it is closed, the server shuts down or starts, or it has become
/// one that can only be read (25006, after a failover: a new connection leads to the new primary).
fn is_lost(error: &IndexError) -> bool {
    let IndexError::Postgres(error) = error else {
        return false;
    };
    match error.code() {
        // Without a code, it is no answer of the server. A value that cannot be written is this side's fault.
        None => error.is_closed() || std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>()),
        Some(code) => {
            let text = code.code();
            // 08: connection, 57P: shutdown and start, 53300: too many connections.
            text.starts_with("08") || text.starts_with("57P") || text == "53300" || text == "25006"
        }
    }
}

/// Returns whether an error shows that the server does not serve: neither this call nor any other would be answered.
pub fn is_away(error: &IndexError) -> bool {
    match error {
        IndexError::Away(_) => true,
        IndexError::Postgres(_) if is_lost(error) => true,
        IndexError::Postgres(error) => {
            error.code().is_some_and(|code| {
                let text = code.code();
                // 28: the login is wrong; 3D: there is no such database; 53: memory or disk is short; 42501: it may not.
                text.starts_with("28") || text.starts_with("3D") || text.starts_with("53") || text == "42501"
            })
        }
        _ => false,
    }
}

/// Returns whether the connection serves after this error.
fn is_harmless(error: &IndexError) -> bool {
    match error {
        IndexError::Postgres(_) => !is_lost(error),
        IndexError::TooLarge(_) | IndexError::Server(_) => true,
        _ => false,
    }
}
