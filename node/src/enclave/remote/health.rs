//! Whether the server is there.

// Waiting for another process is a matter of wall-clock time.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::client::{Client, Served};
use super::error::RemoteError;
use crate::config::ServerConfig;

/// Between two questions while it starts.
const STARTING: Duration = Duration::from_secs(1);
/// Between two questions while it serves.
const SERVING: Duration = Duration::from_secs(2);
/// Questions without an answer in a row before it counts as gone: a busy server may miss one.
const MISSES: u32 = 2;
/// Between two lines of log while it starts.
const REPORT: Duration = Duration::from_secs(15);

/// Asks from time to time, until it is dropped.
#[derive(Debug)]
pub(super) struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until the server answers and has the model.
pub(super) fn wait(client: &Client, config: &ServerConfig) -> Result<Served, RemoteError> {
    let begun = Instant::now();
    let mut reported = begun;
    loop {
        let why = match client.runtime().block_on(client.models()) {
            Ok(models) => return choose(models, &config.model),
            Err(why) => why,
        };
        if begun.elapsed() >= config.patience {
            let seconds = begun.elapsed().as_secs();
            return Err(RemoteError::Silent { url: config.url.clone(), seconds, why });
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            tracing::info!(server = %config.url, why, waited_s = begun.elapsed().as_secs(), "waiting for the inference server");
        }
        std::thread::sleep(STARTING.min(config.patience));
    }
}

/// The model of this name, or the only one.
fn choose(models: Vec<Served>, wanted: &str) -> Result<Served, RemoteError> {
    let names: Vec<String> = models.iter().map(|model| format!("\"{}\"", model.name)).collect();
    let only = models.len() == 1;
    let found = models.into_iter().find(|model| model.name == wanted || wanted.is_empty() && only);
    found.ok_or_else(|| {
        let found = if names.is_empty() { "no model".into() } else { names.join(", ") };
        RemoteError::Model { found: found.chars().take(300).collect(), wanted: wanted.to_owned() }
    })
}

/// Keeps `healthy` up to date.
pub(super) fn watch(client: Arc<Client>, healthy: Arc<AtomicBool>) -> Watch {
    let runtime = client.runtime().clone();
    let task = runtime.spawn(async move {
        let mut misses = 0;
        loop {
            tokio::time::sleep(SERVING).await;
            misses = match client.models().await {
                Ok(models) if models.iter().any(|model| client.serves(model)) => 0,
                other => {
                    if misses + 1 == MISSES {
                        let why = other.err().unwrap_or_else(|| "it serves other models now".into());
                        tracing::warn!(
                            why,
                            "the inference server is gone; no places are offered until it is back"
                        );
                    }
                    (misses + 1).min(MISSES)
                }
            };
            let before = healthy.swap(misses < MISSES, Ordering::Relaxed);
            if !before && misses == 0 {
                tracing::info!("the inference server is back");
            }
        }
    });
    Watch(task.abort_handle())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(names: &[&str]) -> Vec<Served> {
        names.iter().map(|name| Served { name: (*name).into(), context: None }).collect()
    }

    #[test]
    fn a_model_is_found_by_its_name_or_by_being_the_only_one() {
        assert_eq!(choose(served(&["a", "b"]), "b").unwrap().name, "b");
        assert_eq!(choose(served(&["a"]), "").unwrap().name, "a");
        for (models, wanted) in [(served(&["a", "b"]), ""), (served(&["a"]), "b"), (served(&[]), "")] {
            let error = choose(models, wanted).unwrap_err().to_string();
            assert!(error.contains("engine.served_model"), "{error}");
        }
    }
}
