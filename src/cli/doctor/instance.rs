//! The running instance: what it finds wrong itself, and a pull end to end.

use std::path::PathBuf;

use super::{Doctor, Findings};
use crate::admin::diagnosis::Diagnosis;
use crate::cli::instance::{Api, Instance};
use crate::config::Config;
use crate::ops::Images;

/// Checks the running instance. Returns whether there is one.
pub async fn check(files: &[PathBuf], config: &Config, arguments: &Doctor, findings: &mut Findings) -> bool {
    const CHECK: &str = "instance";
    let Ok(api) = Instance::running(files, &arguments.place).await else {
        findings.note(CHECK, "none runs here: start it with `larder serve`, or name it with --admin");
        return false;
    };
    match api.get::<Diagnosis>("api/diagnosis", &[]).await {
        Ok(Diagnosis { findings: found }) if found.is_empty() => findings.ok(CHECK, "it runs, and finds nothing wrong"),
        Ok(Diagnosis { findings: found }) => {
            for finding in found {
                match finding.severity.as_str() {
                    "error" => findings.error(CHECK, finding.text),
                    _ => findings.warning(CHECK, finding.text),
                }
            }
        }
        Err(error) => {
            findings.error(CHECK, error.to_string());
            return true;
        }
    }
    pull(config, &api, arguments.pull.as_deref(), findings).await;
    true
}

/// Pulls an image through the registry door, as a client does.
async fn pull(config: &Config, api: &Api, reference: Option<&str>, findings: &mut Findings) {
    const CHECK: &str = "pull";
    let reference = match reference {
        Some(reference) => reference.to_owned(),
        None => match api.get::<Images>("api/images", &[("n", "1")]).await {
            Ok(Images { images, .. }) if images.is_empty() => {
                return findings
                    .note(CHECK, "nothing is cached yet; try one with --pull docker.io/library/alpine:3.20");
            }
            Ok(Images { mut images, .. }) => images.swap_remove(0).reference,
            Err(error) => return findings.error(CHECK, error.to_string()),
        },
    };
    match super::super::pull::pull(config, &reference).await {
        Ok(pulled) => findings.ok(
            CHECK,
            format!(
                "{reference} came through {}: {} objects, {} bytes, each as its digest says",
                pulled.door, pulled.objects, pulled.bytes
            ),
        ),
        Err(error) => findings.error(CHECK, format!("{reference}: {error}")),
    }
}
