//! How a model family writes calls.

use bincode::{Decode, Encode};

/// The form in which a model was trained to write calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
    Hermes,
    /// `{"name": …, "parameters": {…}}` as the whole answer.
    Llama3,
}

impl ToolFormat {
    /// Reads it off a chat template: templates tell the model the form, and write earlier calls in it.
    /// None for a template that knows no tools, or another form.
    pub fn of_template(source: &str) -> Option<Self> {
        let has = |part: &str| source.contains(part);
        if !has("tools") {
            return None;
        }
        // Others write XML within the same mark, or lists within a similar one.
        let other = ["<function=", "<arg_key>", "<invoke", "<tool_calls>"].into_iter().any(has);
        if has("<tool_call>") && has("</tool_call>") && !other {
            return Some(Self::Hermes);
        }
        // Llama 3's own words, and the key that only its family uses.
        let llama = has("<|start_header_id|>") && has("\"parameters\"");
        (llama && has("tool_call")).then_some(Self::Llama3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_read_off_the_template() {
        let of = ToolFormat::of_template;
        let qwen = "{%- if tools %}<tool_call>\\n{\"name\": <function-name>}\\n</tool_call>{% endif %}";
        assert_eq!(of(qwen), Some(ToolFormat::Hermes));
        let llama = "<|start_header_id|>{% if tools %}{{ '\"parameters\": ' }}{{ message.tool_calls }}";
        assert_eq!(of(llama), Some(ToolFormat::Llama3));
        assert_eq!(of("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"), None);
        assert_eq!(of("{{ tools }}<tool_call><function=a></function></tool_call>"), None);
        assert_eq!(of("{{ tools }}[TOOL_CALLS]"), None);
    }
}
