//! The few DER forms (X.690) of the SGX extension in a PCK certificate.

/// INTEGER, 0 to 127.
pub(super) fn small_integer(value: u8) -> Vec<u8> {
    element(0x02, &[value & 0x7f])
}

pub(super) fn boolean(value: bool) -> Vec<u8> {
    element(0x01, &[if value { 0xff } else { 0 }])
}

pub(super) fn octets(bytes: &[u8]) -> Vec<u8> {
    element(0x04, bytes)
}

pub(super) fn enumerated(value: u8) -> Vec<u8> {
    element(0x0a, &[value & 0x7f])
}

pub(super) fn sequence(items: &[Vec<u8>]) -> Vec<u8> {
    element(0x30, &items.concat())
}

/// The arcs of an object identifier that starts with 1.2 (ISO, member bodies).
pub(super) fn oid(after_1_2: &[u64]) -> Vec<u8> {
    let mut body = vec![40 + 2];
    for &arc in after_1_2 {
        // Base 128, most significant group first, all but the last marked.
        let groups = (u64::BITS - arc.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let more = if group > 0 { 0x80 } else { 0 };
            body.push((arc >> (7 * group)) as u8 & 0x7f | more);
        }
    }
    element(0x06, &body)
}

fn element(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = body.len();
    if len < 0x80 {
        out.push(len as u8);
    } else {
        let bytes = len.to_be_bytes();
        let significant = bytes.iter().skip_while(|&&byte| byte == 0);
        out.push(0x80 | significant.clone().count() as u8);
        out.extend(significant);
    }
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_of_x690() {
        assert_eq!(oid(&[840, 113_741, 1]), [6, 7, 0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 1]);
        assert_eq!(octets(&[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(octets(&[0; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(boolean(true), [1, 1, 0xff]);
        assert_eq!(oid(&[0, 128]), [6, 4, 42, 0, 0x81, 0]);
    }
}
