//! The way from an input that fails to a small one that does.

/// Attempts after which the smallest input so far has to do.
const ATTEMPTS_MAX: u32 = 4000;

/// Takes pieces out, from large ones to single bytes, then makes the bytes that are left 0 or halves
/// them, as long as `fails` goes on to say so.
pub(crate) fn shrink(input: &[u8], fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut attempts = 0;
    let mut accept = |best: &mut Vec<u8>, candidate: Vec<u8>| {
        attempts += 1;
        let accepted = attempts <= ATTEMPTS_MAX && fails(&candidate);
        if accepted {
            *best = candidate;
        }
        accepted
    };
    let mut piece = best.len();
    while piece > 0 {
        let mut at = 0;
        while at < best.len() {
            let mut candidate = best.clone();
            candidate.drain(at..best.len().min(at + piece));
            if !accept(&mut best, candidate) {
                at += piece;
            }
        }
        piece /= 2;
    }
    for at in 0..best.len() {
        // Each step at least halves the byte or takes one off it, so this ends.
        while [0, best[at] / 2, best[at].saturating_sub(1)]
            .into_iter()
            .any(|value| {
                let mut candidate = best.clone();
                candidate[at] = value;
                value < best[at] && accept(&mut best, candidate)
            })
        {}
    }
    best
}
