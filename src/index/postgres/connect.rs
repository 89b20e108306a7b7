//! Connections to the server: TLS, and the password as it is now.

use std::path::PathBuf;
use std::time::Duration;

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls_improved::MakeRustlsConnect;

use super::super::IndexError;
use crate::config::{IndexServer, Secret};
use crate::web::tls;

/// How long sent bytes may stay unacknowledged: a network that swallows packets ends no connection by itself.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

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

/// Makes connections.
pub struct Connector {
    tls: Option<MakeRustlsConnect>,
    password: Secret,
    password_file: Option<PathBuf>,
}

impl Connector {
    /// Creates the connector of an address.
    pub fn new(address: Address) -> Result<Self, IndexError> {
        let Address { tls, password, password_file, .. } = address;
        Ok(Self { tls: tls.map(MakeRustlsConnect::new), password, password_file })
    }

    /// Returns the password. A file is read each time: where it was changed, the next connection has the new one.
    async fn password(&self) -> Secret {
        let Some(file) = &self.password_file else {
            return self.password.clone();
        };
        match tokio::fs::read_to_string(file).await {
            Ok(text) => Secret::new(text.trim_end_matches(['\r', '\n'])),
            Err(_) => self.password.clone(),
        }
    }
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
            match self.tls.clone() {
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
