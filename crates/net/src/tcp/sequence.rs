//! Sequence numbers: arithmetic modulo 2^32.
//!
//! Reference: RFC 9293 §3.4 "Sequence Numbers".

/// How far `a` is past `b`; negative when it is before.
pub fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// Whether `a` comes after `b`.
pub fn after(a: u32, b: u32) -> bool {
    distance(a, b) > 0
}

/// Whether a segment touches the receive window.
///
/// Reference: RFC 9293 §3.4, the table of four acceptability cases.
pub fn is_acceptable(sequence: u32, length: u32, next: u32, window: u32) -> bool {
    let inside = |number: u32| number.wrapping_sub(next) < window;
    match (length, window) {
        (0, 0) => sequence == next,
        (0, _) => inside(sequence),
        (_, 0) => false,
        (_, _) => inside(sequence) || inside(sequence.wrapping_add(length - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc9293_3_4_numbers_wrap() {
        assert!(after(1, u32::MAX) && !after(u32::MAX, 1) && !after(5, 5));
    }

    #[test]
    fn rfc9293_3_4_acceptability_table() {
        assert!(is_acceptable(10, 0, 10, 0) && !is_acceptable(11, 0, 10, 0));
        assert!(is_acceptable(19, 0, 10, 10) && !is_acceptable(20, 0, 10, 10));
        assert!(!is_acceptable(10, 1, 10, 0));
        assert!(is_acceptable(5, 6, 10, 10) && !is_acceptable(5, 5, 10, 10));
    }
}
