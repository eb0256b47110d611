//! A decoder on the device that was chosen, and keys and values there.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Tensor;
use rayon::ThreadPool;

use crate::checkpoint::{Description, LoadError, Tensors, Unread};
use crate::decoder::{DecoderConfig, KvCache, Packing, ServingDecoder, Spot, block_bytes, kv_pools};
#[cfg(feature = "cuda")]
use crate::device::{DeviceDecoder, DeviceOptions, DevicePools, Spot as DeviceSpot};
use crate::device::{DeviceError, DeviceLimits, Processor};
#[cfg(feature = "cuda")]
use crate::kernels::BLOCK;
use crate::kernels::KvPool;
use crate::kernels::{Precision, RoundingError};

/// A decoder that is ready to serve.
#[derive(Debug)]
pub(super) enum Model {
    Cpu(Box<ServingDecoder>),
    #[cfg(feature = "cuda")]
    Cuda(Box<DeviceDecoder>),
}

/// The keys and values of all sequences of an executor.
#[derive(Debug)]
pub(super) enum Pools {
    /// One for each layer.
    Cpu(Vec<KvPool>),
    #[cfg(feature = "cuda")]
    Cuda(Box<DevicePools>),
}

/// The keys and values of one sequence.
#[derive(Debug)]
pub(super) enum Cache {
    Cpu(KvCache),
    #[cfg(feature = "cuda")]
    Cuda(Box<DeviceCache>),
}

/// Blocks of a GPU that one sequence has for itself.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub(super) struct DeviceCache {
    /// `None` before the first token.
    pools: Option<DevicePools>,
    table: Vec<u32>,
    capacity: usize,
    len: usize,
}

impl Model {
    /// Reads a checkpoint's weights to where they serve on a processor.
    pub(super) fn pack(
        unread: Unread,
        precision: Precision,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<(Self, Description), LoadError> {
        let dimensions = unread.config().dimensions.clone();
        let mut packing = Packing::new(dimensions, precision).map_err(LoadError::Memory)?;
        let places = packing.places();
        let put = |tensor, row, values: &[f32]| places.put(tensor, row, values);
        let description = guard(|| unread.read(progress, &put)).map_err(LoadError::Backend)??;
        places.finish();
        Ok((Self::Cpu(Box::new(packing.finish())), description))
    }

    /// Hands a decoder's tensors to a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn upload(
        processor: Processor,
        config: DecoderConfig,
        precision: Precision,
        tensors: &Tensors,
    ) -> Result<Self, LoadError> {
        let Processor::Cuda(index) = processor else { return Err(DeviceError::NotBuilt.into()) };
        let fetch = |name: &str, shape: &[usize]| Ok::<_, LoadError>(tensors.get(name, shape)?);
        let decoder = guard(|| DeviceDecoder::cuda(index, config, DeviceOptions::new(precision), fetch));
        Ok(Self::Cuda(Box::new(decoder.map_err(LoadError::Backend)??)))
    }

    /// This program was built for no GPU.
    #[cfg(not(feature = "cuda"))]
    pub(super) fn upload(
        _: Processor,
        _: DecoderConfig,
        _: Precision,
        _: &Tensors,
    ) -> Result<Self, LoadError> {
        Err(DeviceError::NotBuilt.into())
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Cpu(model) => model.bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.bytes(),
        }
    }

    pub(super) fn layer_weights(&self) -> u64 {
        match self {
            Self::Cpu(model) => model.layer_weights(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.layer_weights(),
        }
    }

    pub(super) fn rounding_error(&self) -> RoundingError {
        match self {
            Self::Cpu(model) => model.rounding_error(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.rounding_error(),
        }
    }

    /// How the weights are kept: on a GPU, two bytes a weight are another format than on a processor.
    pub(super) fn quantisation(&self, precision: Precision) -> &'static str {
        match self {
            Self::Cpu(_) => precision.name(),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.format(),
        }
    }

    /// What the GPU can do at most; `None` on a processor.
    pub(super) fn limits(&self) -> Option<Result<DeviceLimits, DeviceError>> {
        match self {
            Self::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => Some(model.limits()),
        }
    }

    /// Prompt tokens of a step: enough for products to run at full speed.
    pub(super) fn prefill(&self) -> usize {
        match self {
            Self::Cpu(_) => 64,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => 512,
        }
    }

    /// Memory of a block of keys and values in all layers.
    pub(super) fn block_bytes(&self) -> u64 {
        match self {
            Self::Cpu(model) => block_bytes(model.config()),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => model.block_bytes() as u64,
        }
    }

    /// Room for `blocks` blocks.
    pub(super) fn pools(&self, blocks: u32) -> Result<Pools, String> {
        guard(|| match self {
            Self::Cpu(model) => Ok(Pools::Cpu(kv_pools(model.config(), blocks as usize))),
            #[cfg(feature = "cuda")]
            Self::Cuda(model) => {
                let pools = DevicePools::new(model, blocks as usize).map_err(|why| why.to_string())?;
                Ok(Pools::Cuda(Box::new(pools)))
            }
        })?
    }

    /// Computes rows of any sequences; the logits after those that are `wanted`, which rise.
    pub(super) fn step(
        &self,
        ids: &[u32],
        spots: &[Spot<'_>],
        wanted: &[usize],
        pools: &mut Pools,
        threads: Option<&ThreadPool>,
    ) -> Result<Vec<f32>, String> {
        guard(|| match (self, pools) {
            (Self::Cpu(model), Pools::Cpu(pools)) => {
                Ok(model.step(ids, spots, wanted, pools, threads).map(host).unwrap_or_default())
            }
            #[cfg(feature = "cuda")]
            (Self::Cuda(model), Pools::Cuda(pools)) => {
                let spots =
                    spots.iter().map(|spot| DeviceSpot { position: spot.position, table: spot.table });
                let spots: Vec<DeviceSpot<'_>> = spots.collect();
                model.logits(ids, &spots, wanted, pools).map_err(|why| why.to_string())
            }
            #[cfg(feature = "cuda")]
            _ => Err("the pools are another device's".into()),
        })?
    }

    /// A cache with room for `capacity` tokens.
    pub(super) fn cache(&self, capacity: usize) -> Cache {
        match self {
            Self::Cpu(model) => Cache::Cpu(KvCache::new(model.config(), capacity)),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => {
                Cache::Cuda(Box::new(DeviceCache { pools: None, table: Vec::new(), capacity, len: 0 }))
            }
        }
    }

    /// Appends `ids` to a sequence; the logits after the last of them.
    pub(super) fn last(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, String> {
        guard(|| match (self, cache) {
            (Self::Cpu(model), Cache::Cpu(cache)) => Ok(host(model.forward_last(ids, cache))),
            #[cfg(feature = "cuda")]
            (Self::Cuda(model), Cache::Cuda(cache)) => {
                append(model, ids, &[ids.len().saturating_sub(1)], cache)
            }
            #[cfg(feature = "cuda")]
            _ => Err("the cache is another device's".into()),
        })?
    }

    /// The same; the logits after each of them.
    pub(super) fn each(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, String> {
        guard(|| match (self, cache) {
            (Self::Cpu(model), Cache::Cpu(cache)) => Ok(host(model.forward(ids, cache))),
            #[cfg(feature = "cuda")]
            (Self::Cuda(model), Cache::Cuda(cache)) => {
                append(model, ids, &(0..ids.len()).collect::<Vec<_>>(), cache)
            }
            #[cfg(feature = "cuda")]
            _ => Err("the cache is another device's".into()),
        })?
    }
}

impl Pools {
    /// Overwrites blocks.
    pub(super) fn wipe(&mut self, blocks: &[u32]) {
        match self {
            Self::Cpu(pools) => {
                pools.iter_mut().for_each(|pool| blocks.iter().for_each(|&block| pool.wipe(block)));
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(pools) => {
                if let Ok(Err(why)) = guard(|| pools.wipe(blocks)).map_err(|why| tracing::error!(why)) {
                    tracing::error!(%why, "blocks on the device could not be overwritten");
                }
            }
        }
    }
}

impl Cache {
    /// Tokens in the cache.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Cpu(cache) => cache.len(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cache) => cache.len,
        }
    }

    /// Tokens that fit.
    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::Cpu(cache) => cache.capacity(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cache) => cache.capacity,
        }
    }
}

#[cfg(feature = "cuda")]
fn append(
    model: &DeviceDecoder,
    ids: &[u32],
    wanted: &[usize],
    cache: &mut DeviceCache,
) -> Result<Vec<f32>, String> {
    let DeviceCache { pools, table, capacity, len } = cache;
    let pools = match pools {
        Some(pools) => pools,
        none => {
            let made = DevicePools::new(model, capacity.div_ceil(BLOCK)).map_err(|why| why.to_string())?;
            *table = (0..made.blocks() as u32).collect();
            none.insert(made)
        }
    };
    let spots: Vec<DeviceSpot<'_>> =
        (*len..*len + ids.len()).map(|position| DeviceSpot { position, table: &table[..] }).collect();
    let logits = model.logits(ids, &spots, wanted, pools).map_err(|why| why.to_string())?;
    *len += ids.len();
    Ok(logits)
}

fn host(logits: Tensor<2>) -> Vec<f32> {
    // Nothing but f32 comes here, and so nothing is copied.
    logits.into_data().try_into_vec::<f32>().unwrap_or_default()
}

/// burn reports errors by panicking (an allocation that fails, say). One request must not take the
/// worker down, so a panic becomes an error of that request.
fn guard<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("unknown panic").chars().take(200).collect()
    })
}
