//! What a host can see does not contain what was asked or answered.

use std::{ffi::OsStr, fs::File, io::Read as _};

use cocoon_testnet::{
    Testnet,
    capture::{Recording, find, recordings},
    instrumented,
};
use serde_json::json;

use crate::support::alone;

/// A label and 24 random letters: each is one byte, so that at one byte a token the canary is also a
/// sequence of token ids.
fn canary(label: &str) -> String {
    let mut random = [0; 24];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).unwrap();
    let letters: String = random.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    format!("{label}{letters}")
}

/// Runs a network of the instrumented program, asks with canaries, and returns what was recorded.
async fn record(cipher: &str, tokens: &str, canaries: &[String]) -> Vec<Recording> {
    let folder = tempfile::tempdir().unwrap();
    let tap = folder.path().join("tap");
    let env: [(&str, &OsStr); 2] =
        [("COCOON_TEST_TAP", tap.as_os_str()), ("COCOON_TEST_CIPHER", OsStr::new(cipher))];
    let testnet = Testnet::up(&instrumented().unwrap(), &["--workers", "1", "--echo", tokens], &env).unwrap();
    for canary in canaries {
        let body = json!({
            "model": "echo", "stream": true, "messages": [{"role": "user", "content": canary}],
        });
        let response = testnet.post(&body).await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
        let answer = cocoon_testnet::answer_events(response, |_| {}).await.unwrap();
        assert!(answer.text.contains(canary.as_str()), "the echo engine did not echo: {:?}", answer.text);
    }
    drop(testnet);
    recordings(&tap).unwrap()
}

#[tokio::test]
async fn neither_prompt_nor_answer_passes_the_host_in_the_clear() {
    let _alone = alone().await;
    // Whole words as tokens, and one byte a token, which is how an answer looks as token ids.
    for tokens in ["20x40", "200x1"] {
        let canaries: Vec<String> = (0..3).map(|i| canary(&format!("q{i}"))).collect();

        // First the proof that the search can see at all: without encryption it finds every canary at
        // both places and in both directions.
        let naked = record("null", tokens, &canaries).await;
        for place in ["-session-in", "-session-out", "-link-in", "-link-out"] {
            let here: Vec<&Recording> =
                naked.iter().filter(|recording| recording.name.contains(place)).collect();
            assert!(!here.is_empty(), "nothing was recorded at {place}");
            for canary in &canaries {
                let found = here.iter().find_map(|recording| find(recording, canary));
                assert!(
                    found.is_some(),
                    "the search is blind: {canary} is not found at {place} without encryption"
                );
            }
        }

        let sealed = record("real", tokens, &canaries).await;
        assert!(
            sealed.iter().map(|recording| recording.frames.len()).sum::<usize>() > 20,
            "too little was recorded"
        );
        for recording in &sealed {
            for canary in &canaries {
                assert_eq!(
                    find(recording, canary),
                    None,
                    "{canary} passes in the clear in {}",
                    recording.name
                );
            }
        }
    }
}
