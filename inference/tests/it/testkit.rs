//! Small engines and requests for the tests.

use std::path::PathBuf;
use std::sync::OnceLock;

use cocoon_inference::{BurnEngine, ChatRole, Engine, GenerateRequest, Message, Sampling};

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

/// The untied f32 fixture, loaded once.
pub(crate) fn engine() -> &'static BurnEngine {
    static ENGINE: OnceLock<BurnEngine> = OnceLock::new();
    ENGINE.get_or_init(|| load("untied"))
}

pub(crate) fn load(name: &str) -> BurnEngine {
    BurnEngine::load(&fixture(name), None, &mut |_, _| ()).unwrap()
}

pub(crate) fn request(engine: &dyn Engine, content: &str, sampling: Sampling) -> GenerateRequest {
    let messages = vec![Message::new(ChatRole::User, content)];
    GenerateRequest::new(engine.info().digest, messages, sampling)
}
