//! What each family's fields mean, and which of their values are refused.
//!
//! The names and defaults are those of the configuration classes of `transformers` 5.12 and, for
//! files written before version 5, of 4.57: there `rope_theta`, `rope_scaling`, Gemma's
//! `rope_local_base_freq` and `sliding_window_pattern` stand where version 5 has `rope_parameters` and
//! `layer_types`.

use half::{bf16, f16};
use serde_json::Value;

use super::ConfigError;
use super::fields::{Fields, show};
use crate::decoder::{Attention, Family, RopeScaling, Rotary};

/// Longest window and largest stretched context.
const MAX_POSITIONS: usize = 4_194_304;

/// The family of a configuration.
pub(super) fn family(fields: &Fields) -> Result<Family, ConfigError> {
    const SERVED: &str = "`qwen3`, `llama`, `mistral` and `gemma3_text`";
    let of = |value: &Value| Family::ALL.into_iter().find(|f| value == f.model_type());
    fields.supported("model_type", SERVED, |v| of(v).is_some())?;
    let family = fields.get("model_type").and_then(of);
    let family = family.ok_or_else(|| fields.missing("model_type", format!("one of {SERVED}")))?;
    fields.supported("architectures", &format!("`[\"{}\"]`", family.architecture()), |v| {
        v.as_array().is_some_and(|a| a.iter().any(|x| x == family.architecture()))
    })?;
    Ok(family)
}

/// Refuses options that would change the result and are not computed.
pub(super) fn refuse_unsupported(fields: &Fields, family: Family) -> Result<(), ConfigError> {
    let no = |v: &Value| v == false;
    let full = |v: &Value| v.as_array().is_some_and(|a| a.iter().all(|x| x == "full_attention"));
    fields.supported("quantization_config", "unquantised checkpoints", |_| false)?;
    fields.supported("partial_rotary_factor", "heads rotated as a whole (`1.0`)", |v| {
        v.as_f64() == Some(1.0)
    })?;
    fields.supported("mlp_bias", "`false`", no)?;
    if family != Family::Llama {
        fields.supported("attention_bias", "`false`", no)?;
    }
    match family {
        Family::Gemma3 => {
            fields.supported("hidden_activation", "`gelu_pytorch_tanh`", |v| v == "gelu_pytorch_tanh")?;
            for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
                fields.supported(field, "no softcapping (`null`)", |_| false)?;
            }
            fields.supported("use_bidirectional_attention", "`false`", no)
        }
        Family::Qwen3 => {
            fields.supported("hidden_act", "`silu`", |v| v == "silu")?;
            fields.supported("use_sliding_window", "`false`", no)?;
            fields.supported("layer_types", "only `full_attention`", full)
        }
        Family::Llama => {
            fields.supported("hidden_act", "`silu`", |v| v == "silu")?;
            fields.supported("sliding_window", "`null` in a Llama", |_| false)?;
            fields.supported("layer_types", "only `full_attention`", full)
        }
        Family::Mistral => {
            fields.supported("hidden_act", "`silu`", |v| v == "silu")?;
            fields.supported("layer_types", "one `sliding_window` for all layers", |_| false)
        }
    }
}

/// The attention of every layer.
pub(super) fn layers(fields: &Fields, family: Family, count: usize) -> Result<Vec<Attention>, ConfigError> {
    if family == Family::Gemma3 {
        return gemma3_layers(fields, count);
    }
    let window = match family {
        // A file without the field gets the library's default; `null` means no window.
        Family::Mistral if !fields.has("sliding_window") => Some(4096),
        Family::Mistral if fields.get("sliding_window").is_some() => Some(window(fields)?),
        _ => None,
    };
    let source = match (fields.inside("rope_parameters")?, fields.inside("rope_scaling")?) {
        (Some(_), Some(_)) if fields.get("rope_parameters") != fields.get("rope_scaling") => {
            return Err(fields.wrong(
                "rope_scaling",
                "`an object`".into(),
                "absent beside `rope_parameters`",
            ));
        }
        (new, old) => new.or(old),
    };
    let rotary = rotary(fields, source.as_ref(), "rope_theta", 10_000.0)?;
    Ok(vec![Attention { window, rotary }; count])
}

fn window(fields: &Fields) -> Result<usize, ConfigError> {
    fields.integer("sliding_window", 1..=MAX_POSITIONS, None)
}

/// Layers that see everything and layers with a window, each kind with its own rotary embedding.
fn gemma3_layers(fields: &Fields, count: usize) -> Result<Vec<Attention>, ConfigError> {
    let (new, old) = (fields.inside("rope_parameters")?, fields.inside("rope_scaling")?);
    if new.is_some() && old.is_some() {
        return Err(fields.wrong("rope_scaling", "`an object`".into(), "absent beside `rope_parameters`"));
    }
    let (global, local) = match &new {
        // Version 5: one object per kind of layer.
        Some(new) => {
            let of = |kind: &str| {
                new.inside(kind)?
                    .ok_or_else(|| new.missing(kind, "an object with `rope_type` and `rope_theta`"))
            };
            (Some(of("full_attention")?), Some(of("sliding_attention")?))
        }
        // Before: scaling was for the global layers only.
        None => (old, None),
    };
    let full =
        Attention { window: None, rotary: rotary(fields, global.as_ref(), "rope_theta", 1_000_000.0)? };
    let sliding = Attention {
        window: Some(window(fields)?),
        rotary: rotary(fields, local.as_ref(), "rope_local_base_freq", 10_000.0)?,
    };
    let Some(kinds) = fields.get("layer_types") else {
        let pattern = fields.integer("sliding_window_pattern", 1..=1024, Some(6))?;
        let every = |i: usize| if (i + 1).is_multiple_of(pattern) { full } else { sliding };
        return Ok((0..count).map(every).collect());
    };
    let named = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(full),
        Some("sliding_attention") => Some(sliding),
        _ => None,
    };
    let layers: Option<Vec<_>> = kinds.as_array().and_then(|all| all.iter().map(named).collect());
    layers.filter(|layers| layers.len() == count).ok_or_else(|| {
        let expected =
            format!("{count} times `full_attention` or `sliding_attention`, as `num_hidden_layers` says");
        fields.wrong("layer_types", show(kinds), expected)
    })
}

/// A rotary embedding. `source` is the object that describes it, if there is one; the base may also
/// stand in `theta_field` at the top.
fn rotary(
    fields: &Fields,
    source: Option<&Fields>,
    theta_field: &str,
    default_theta: f64,
) -> Result<Rotary, ConfigError> {
    let base = |fields: &Fields, name: &str, default| fields.number(name, 1.0, 1e12, default);
    let outer = base(fields, theta_field, Some(default_theta))?;
    let Some(source) = source else {
        return Ok(Rotary { theta: outer, scaling: RopeScaling::None });
    };
    let theta = base(source, "rope_theta", Some(outer))?;
    if fields.get(theta_field).is_some() && theta != outer {
        let expected = format!("the same as `{theta_field}`, {outer}");
        return Err(source.wrong("rope_theta", format!("`{theta}`"), expected));
    }
    source.supported("partial_rotary_factor", "heads rotated as a whole (`1.0`)", |v| {
        v.as_f64() == Some(1.0)
    })?;
    const TYPES: &str = "`default`, `linear` and `llama3`";
    let field = if source.get("rope_type").is_some() { "rope_type" } else { "type" };
    source.supported(field, TYPES, |v| {
        v.as_str().is_some_and(|t| ["default", "linear", "llama3"].contains(&t))
    })?;
    let kind = source.get(field).and_then(Value::as_str).unwrap_or("default");
    let factor = || source.number("factor", 0.0, 1e6, None);
    let scaling = match kind {
        "linear" => RopeScaling::Linear { factor: factor()? },
        "llama3" => llama3(source, factor()?)?,
        _ => RopeScaling::None,
    };
    Ok(Rotary { theta, scaling })
}

fn llama3(source: &Fields, factor: f64) -> Result<RopeScaling, ConfigError> {
    let low_freq_factor = source.number("low_freq_factor", 0.0, 1e6, None)?;
    let high_freq_factor = source.number("high_freq_factor", 0.0, 1e6, None)?;
    if high_freq_factor <= low_freq_factor {
        let expected = format!("above `low_freq_factor`, {low_freq_factor}");
        return Err(source.wrong("high_freq_factor", format!("`{high_freq_factor}`"), expected));
    }
    let original = source.integer("original_max_position_embeddings", 1..=MAX_POSITIONS, None)?;
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original as f64,
    })
}

/// What scores are multiplied with.
pub(super) fn query_scale(fields: &Fields, family: Family, head_dim: usize) -> Result<f64, ConfigError> {
    let scalar = match family {
        Family::Gemma3 => fields.number("query_pre_attn_scalar", 0.0, 1e6, Some(256.0))?,
        _ => head_dim as f64,
    };
    Ok(scalar.powf(-0.5))
}

/// What embeddings are multiplied with. Gemma's factor is a constant in the number format of the
/// checkpoint, so `transformers` rounds it: √1152 is 34 in bf16, and the model was trained with that.
pub(super) fn embed_scale(fields: &Fields, family: Family, hidden: usize) -> Result<f32, ConfigError> {
    if family != Family::Gemma3 {
        return Ok(1.0);
    }
    let exact = (hidden as f64).sqrt() as f32;
    // Version 5 writes `dtype`, earlier ones `torch_dtype`.
    let field = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    const EXPECTED: &str = "`bfloat16`, `float16` or `float32`, as the weights are";
    let Some(value) = fields.get(field) else { return Err(fields.missing("dtype", EXPECTED)) };
    match value.as_str() {
        Some("bfloat16") => Ok(bf16::from_f32(exact).to_f32()),
        Some("float16") => Ok(f16::from_f32(exact).to_f32()),
        Some("float32") => Ok(exact),
        _ => Err(fields.wrong(field, show(value), EXPECTED)),
    }
}
