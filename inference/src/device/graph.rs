//! Steps that were recorded and are replayed.
//!
//! A decode step launches some hundred small kernels, and asking for each takes a processor about as long as a GPU takes to
//! run it. CUDA can record the launches once and start all of them with one call; the recording works on the
//! buffers it was made with, so that a step writes its inputs into them and replays. A recording is used only after it
//! gave the same bits as the launches it was made of.

use std::collections::HashMap;

use cubecl::client::{Client, Graph};

use super::DeviceError;
use super::plan::Plan;

/// Rows above which a step is not recorded: its kernels take longer than asking for them.
const MOST_ROWS: usize = 128;

/// Recordings that are kept; each holds memory of the driver.
const MOST_GRAPHS: usize = 64;

/// Which steps are the same but for their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) plan: Plan,
    /// Whether tokens are chosen on the device.
    pub(super) choose: bool,
    /// The pools that it works on.
    pub(super) pools: u64,
}

#[derive(Debug)]
enum Known {
    /// It was launched before; the next time it is worth recording.
    Once,
    Recorded(Graph),
}

/// The recordings of a decoder.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    known: HashMap<Key, Known>,
    enabled: bool,
}

impl Graphs {
    pub(super) fn new(enabled: bool) -> Self {
        Self { known: HashMap::new(), enabled }
    }

    /// Forgets all, since the buffers they work on are gone.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    /// Recordings there are.
    #[cfg(test)]
    pub(super) fn recorded(&self) -> usize {
        self.known.values().filter(|known| matches!(known, Known::Recorded(_))).count()
    }

    /// Does what `launch` asks for and reads the result, by replaying it if the same was asked for before.
    pub(super) fn run<T: PartialEq>(
        &mut self,
        client: &Client,
        key: Key,
        launch: impl Fn() -> Result<(), DeviceError>,
        read: impl Fn() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        // A prompt's step is rarely asked for twice.
        let worthwhile = self.enabled && key.plan.rows <= MOST_ROWS && key.plan.wanted == key.plan.rows;
        if !worthwhile {
            launch()?;
            return read();
        }
        match self.known.get(&key) {
            Some(Known::Recorded(graph)) => {
                replay(graph)?;
                read()
            }
            Some(Known::Once) => {
                let (found, graph) = record(client, &launch, &read)?;
                match graph {
                    Some(graph) => {
                        self.known.insert(key, Known::Recorded(graph));
                    }
                    None => {
                        tracing::warn!(
                            "this device does not replay steps as they were recorded; it launches them"
                        );
                        self.enabled = false;
                        self.clear();
                    }
                }
                Ok(found)
            }
            None => {
                if self.known.len() >= MOST_GRAPHS {
                    self.clear();
                }
                self.known.insert(key, Known::Once);
                launch()?;
                read()
            }
        }
    }
}

/// Launches a step while it is recorded. The result, and the recording if replaying it gives the same.
fn record<T: PartialEq>(
    client: &Client,
    launch: &impl Fn() -> Result<(), DeviceError>,
    read: &impl Fn() -> Result<T, DeviceError>,
) -> Result<(T, Option<Graph>), DeviceError> {
    let prepared = client.graph_prepare();
    launch()?;
    let found = read()?;
    if prepared.is_err() {
        return Ok((found, None));
    }
    let recorded = client.start_capture().map_err(DeviceError::from).and_then(|()| {
        let launched = launch();
        // It must end however it went, or the stream takes nothing else.
        let graph = client.stop_capture()?;
        launched.map(|()| graph)
    });
    let Ok(graph) = recorded else { return Ok((found, None)) };
    let same = replay(&graph).and_then(|()| read()).is_ok_and(|again| again == found);
    Ok((found, same.then_some(graph)))
}

fn replay(graph: &Graph) -> Result<(), DeviceError> {
    #[allow(unsafe_code, reason = "a recording works on buffers that it does not hold")]
    // SAFETY: the buffers are the decoder's workspace and weights, and the key's pools, which the caller holds; a
    // workspace that is replaced takes the recordings with it. All of them are used from one stream.
    unsafe {
        Ok(graph.replay()?)
    }
}
