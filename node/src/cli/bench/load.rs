//! The load generator: a closed loop of N clients, each with a new TCP connection per request.
//!
//! It speaks HTTP/1.1 by hand and does as little as it can, because it shares the machine with what it
//! measures. Every answer is checked: status 200, the expected number of text events, and `[DONE]`.

// A shell: measuring is what it is for.
#![allow(clippy::disallowed_methods, reason = "a load generator measures time")]

use std::{
    cell::RefCell,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};

use crate::cli::output;

#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct Args {
    /// The gateway's address
    #[arg(long)]
    address: SocketAddr,
    /// File with the gateway's key
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// The model to ask
    #[arg(long)]
    model: String,
    /// Requests in flight
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Requests in all
    #[arg(long, default_value_t = 100)]
    requests: usize,
    /// Text events that every answer must have
    #[arg(long, default_value_t = 50)]
    events: usize,
}

/// What one run measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) requests: usize,
    pub(super) seconds: f64,
    pub(super) requests_per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) ttft_p50_ms: f64,
    pub(super) ttft_p99_ms: f64,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let measured = LocalSet::new().block_on(&runtime, drive(args))?;
    output::line(serde_json::to_string(&measured)?);
    Ok(())
}

struct Shared {
    request: Vec<u8>,
    left: usize,
    samples: Vec<(Duration, Duration)>,
}

async fn drive(args: &Args) -> anyhow::Result<Measured> {
    let key = std::fs::read_to_string(&args.key_file).context("cannot read the key file")?;
    let body = serde_json::json!({
        "model": args.model, "stream": true, "temperature": 0,
        "messages": [{"role": "user", "content": "Write a haiku about confidential computing."}],
    })
    .to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        args.address,
        key.trim(),
        body.len()
    );
    let shared = Rc::new(RefCell::new(Shared {
        request: request.into_bytes(),
        left: args.requests,
        samples: Vec::new(),
    }));
    let started = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..args.concurrency {
        clients.push(tokio::task::spawn_local(client(args.address, args.events, Rc::clone(&shared))));
    }
    for client in clients {
        client.await.context("a client died")??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let samples = std::mem::take(&mut shared.borrow_mut().samples);
    let sorted = |pick: fn(&(Duration, Duration)) -> Duration| {
        let mut list: Vec<f64> = samples.iter().map(|sample| pick(sample).as_secs_f64() * 1e3).collect();
        list.sort_by(f64::total_cmp);
        list
    };
    let (total, first) = (sorted(|sample| sample.1), sorted(|sample| sample.0));
    Ok(Measured {
        requests: samples.len(),
        seconds,
        requests_per_s: samples.len() as f64 / seconds,
        p50_ms: quantile(&total, 0.5),
        p99_ms: quantile(&total, 0.99),
        ttft_p50_ms: quantile(&first, 0.5),
        ttft_p99_ms: quantile(&first, 0.99),
    })
}

async fn client(address: SocketAddr, events: usize, shared: Rc<RefCell<Shared>>) -> anyhow::Result<()> {
    let request = shared.borrow().request.clone();
    let mut answer = Vec::with_capacity(64 * 1024);
    loop {
        {
            let mut shared = shared.borrow_mut();
            if shared.left == 0 {
                return Ok(());
            }
            shared.left -= 1;
        }
        answer.clear();
        let started = Instant::now();
        let mut stream = TcpStream::connect(address).await.context("cannot connect to the gateway")?;
        stream.set_nodelay(true)?;
        stream.write_all(&request).await?;
        let mut first = None;
        while stream.read_buf(&mut answer).await? > 0 {
            if first.is_none() && count(&answer, TEXT) > 0 {
                first = Some(started.elapsed());
            }
        }
        let total = started.elapsed();
        if !answer.starts_with(b"HTTP/1.1 200") {
            bail!("the gateway answered: {}", String::from_utf8_lossy(&answer[..answer.len().min(600)]));
        }
        let found = count(&answer, TEXT);
        ensure!(found == events, "an answer had {found} text events instead of {events}");
        ensure!(count(&answer, b"[DONE]") == 1, "an answer had no end");
        shared.borrow_mut().samples.push((first.unwrap_or(total), total));
    }
}

/// What only an event with text contains.
const TEXT: &[u8] = b"\"delta\":{\"content\":\"";

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    let mut found = 0;
    let mut at = 0;
    while let Some(next) = haystack[at..].iter().position(|byte| *byte == needle[0]) {
        at += next;
        if haystack[at..].starts_with(needle) {
            found += 1;
            at += needle.len();
        } else {
            at += 1;
        }
    }
    found
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    // Nearest rank.
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_are_counted_without_overlap() {
        assert_eq!(count(b"abcabcab", b"abc"), 2);
        assert_eq!(count(b"", b"abc"), 0);
        assert_eq!(count(b"aaaa", b"aa"), 2);
    }

    #[test]
    fn quantiles_are_nearest_rank() {
        let list = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&list, 0.5), 2.0);
        assert_eq!(quantile(&list, 0.99), 4.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
