//! `helm template`, where helm is there.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::text::last_words;

/// How long helm may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most bytes that helm may render.
const RENDERED: u64 = 64 << 20;
/// Most bytes of helm's complaint that are read.
const COMPLAINT: u64 = 64 << 10;

/// Returns what `helm template` makes of a chart. `None`: there is no helm. The error says why helm made nothing.
pub async fn rendered(chart: &Path) -> Option<Result<String, String>> {
    let mut command = Command::new("helm");
    command.arg("template").arg("larder").arg(chart).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(error.to_string())),
    };
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let ran = async {
        let (mut text, mut said) = (String::new(), Vec::new());
        let output = async {
            match output {
                Some(output) => output.take(RENDERED).read_to_string(&mut text).await.map(drop),
                None => Ok(()),
            }
        };
        let errors = async {
            match errors {
                Some(errors) => errors.take(COMPLAINT).read_to_end(&mut said).await.map(drop),
                None => Ok(()),
            }
        };
        tokio::try_join!(output, errors)?;
        child.wait().await.map(|status| (status.success(), text, said))
    };
    Some(match tokio::time::timeout(PATIENCE, ran).await {
        Ok(Ok((true, text, _))) => Ok(text),
        Ok(Ok((false, _, said))) => Err(last_words(&String::from_utf8_lossy(&said))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it took longer than {} s", PATIENCE.as_secs())),
    })
}
