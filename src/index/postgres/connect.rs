//! Connections to the server: TLS, and the password as it is now.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::{ClientWrapper, Connect};
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls_improved::MakeRustlsConnect;

use super::super::IndexError;
use crate::config::{IndexServer, Secret};
use crate::web::tls;
use crate::work::Pool;

/// How long sent bytes may stay unacknowledged: a network that swallows packets ends no connection by itself.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// How long reading the password may take.
const READ: Duration = Duration::from_secs(1);
/// Most bytes of a password.
const PASSWORD: u64 = 64 << 10;

/// Where the server is, and how to log in there.
pub struct Address {
    pub config: Config,
    tls: Option<rustls::ClientConfig>,
    password: Secret,
    password_file: Option<PathBuf>,
}

impl Address {
    /// Returns the address that the configuration names.
    pub fn of(server: &IndexServer) -> Result<Self, IndexError> {
        let mut config = Config::new();
        config.host(&server.host).port(server.port).user(&server.user).dbname(&server.database);
        config.application_name("larder");
        config.tcp_user_timeout(UNACKNOWLEDGED).keepalives_idle(UNACKNOWLEDGED);
        let tls = server.tls.as_ref().map(tls::client_config).transpose();
        let tls = tls.map_err(|error| IndexError::Server(format!("TLS: {error}")))?;
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        Ok(Self { config, tls, password: server.password.clone(), password_file: server.password_file.clone() })
    }
}

/// Makes connections; clones are the same.
#[derive(Clone)]
pub struct Connector(Arc<Parts>);

struct Parts {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// The password as it was last read.
    password: Mutex<Secret>,
    file: Option<PathBuf>,
    /// One reader at a time: a file on a file system that hangs keeps its thread.
    reading: Pool,
}

impl Connector {
    /// Creates the connector of an address.
    pub fn new(address: Address) -> Self {
        let Address { config, tls, password, password_file: file } = address;
        let reading = Pool::new("reading index.password_file", 1, READ);
        let tls = tls.map(MakeRustlsConnect::new);
        Self(Arc::new(Parts { config, tls, password: Mutex::new(password), file, reading }))
    }

    /// Begins a connection outside the pool. It is closed when it is dropped.
    pub async fn begin(&self) -> Result<ClientWrapper, IndexError> {
        let (client, task) = self.connect(&self.0.config).await?;
        Ok(ClientWrapper::new(client, task))
    }

    /// Returns the password. A file is read each time: where it was changed, the next connection has the new one. Where
    /// it cannot be read now, the last one will do.
    async fn password(&self) -> Secret {
        let last = || self.0.password.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = self.0.file.clone() {
            match self.0.reading.run_io(move || read(&file)).await {
                Ok(text) => *last() = Secret::new(text.trim_end_matches(['\r', '\n'])),
                Err(error) => tracing::debug!(%error, "index.password_file cannot be read"),
            }
        }
        last().clone()
    }
}

/// Reads a file as far as a password may be long.
fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(PASSWORD).read_to_string(&mut text)?;
    Ok(text)
}

impl Connect for Connector {
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let mut config = config.clone();
        Box::pin(async move {
            let password = self.password().await;
            if !password.is_empty() {
                config.password(password.reveal());
            }
            // The task ends with the connection; the pool ends it when it drops the client.
            match self.0.tls.clone() {
                Some(tls) => {
                    let (client, connection) = config.connect(tls).await?;
                    Ok((client, tokio::spawn(async move { ended(connection.await) })))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    Ok((client, tokio::spawn(async move { ended(connection.await) })))
                }
            }
        })
    }
}

/// The call that used the connection says what it means.
fn ended(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the index has ended");
    }
}
