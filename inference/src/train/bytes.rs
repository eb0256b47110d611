//! The embedded model's tokens: one per byte, plus the markers of the chat format.
//!
//! Id `n < 256` is the byte `n`, so nothing has to be learned about spelling and no text is out of
//! vocabulary. The markers follow. [`super::export`] writes the same table as a `tokenizer.json`.

/// End of a document; also what padding looks like to other tools.
pub const END_OF_TEXT: u32 = 256;
/// Opens a message of the chat.
pub const IM_START: u32 = 257;
/// Closes a message; the model stops here.
pub const IM_END: u32 = 258;
/// Opens the working-out before an answer.
pub const THINK: u32 = 259;
/// Closes it.
pub const THINK_END: u32 = 260;
/// All of them.
pub const VOCAB: usize = 261;
/// The text of the markers, in the order of their ids.
pub const MARKERS: [(&str, u32); 5] = [
    ("<|endoftext|>", END_OF_TEXT),
    ("<|im_start|>", IM_START),
    ("<|im_end|>", IM_END),
    ("<think>", THINK),
    ("</think>", THINK_END),
];

/// Encodes text, markers included.
pub fn encode(text: &str) -> Vec<u32> {
    let mut ids = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(&byte) = rest.as_bytes().first() {
        if byte == b'<'
            && let Some((marker, id)) = MARKERS.iter().find(|(marker, _)| rest.starts_with(marker))
        {
            ids.push(*id);
            rest = &rest[marker.len()..];
            continue;
        }
        let width = rest.chars().next().map_or(1, char::len_utf8);
        ids.extend(rest.bytes().take(width).map(u32::from));
        rest = &rest[width..];
    }
    ids
}

/// Decodes ids; bytes that are not UTF-8 become the replacement character.
pub fn decode(ids: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(ids.len());
    for &id in ids {
        match u8::try_from(id) {
            Ok(byte) => bytes.push(byte),
            Err(_) => {
                if let Some((marker, _)) = MARKERS.iter().find(|(_, marker)| *marker == id) {
                    bytes.extend(marker.bytes());
                }
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One exchange as the chat template renders it: ids, and the index of the first answer token.
pub fn conversation(system: Option<&str>, user: &str, answer: &str) -> (Vec<u32>, usize) {
    let mut ids = prompt(system, user);
    let start = ids.len();
    ids.extend(encode(answer));
    ids.push(IM_END);
    (ids, start)
}

/// The prompt of one exchange, up to and including the assistant's header.
pub fn prompt(system: Option<&str>, user: &str) -> Vec<u32> {
    let mut text = String::new();
    if let Some(system) = system {
        text.push_str(&format!("<|im_start|>system\n{system}<|im_end|>\n"));
    }
    text.push_str(&format!("<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"));
    encode(&text)
}
