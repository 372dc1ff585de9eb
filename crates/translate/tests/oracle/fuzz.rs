//! Random bytes as guest code, through the whole translator.
//!
//! Nothing is compared: whatever the bytes do must be something that a guest may see (an
//! exception, an exit, a loop that a kick ends), never a crash or an error of the engine.

use crate::case::{Case, CODE};
use crate::engine;
use crate::features::Features;
use crate::inputs;
use crate::plan::{Options, Plan};
use crate::report::Board;
use crate::rng::Rng;
use crate::translated::{Limit, TranslatedTarget};
use crate::worker::in_child;
use crate::xstate::Layout;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Deaths of the process under test after which fuzzing stops: enough to look at.
const MOST_DEATHS: u64 = 10;
/// A guest that loops is kicked soon, so that most of the time goes to other inputs.
const LIMIT: Limit = Limit { tick: Duration::from_millis(2), ticks: 3 };

/// Fuzz for about `seconds`. Returns whether nothing went wrong.
///
/// # Errors
/// A sentence, when the engine cannot start.
pub fn run(seconds: u64, seed: u64) -> Result<bool, String> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let board = Board::shared().map_err(|error| format!("no shared memory: {error}"))?;
    let layout = Layout::of_host();
    let options = Options { cases: 0, first: 0, seed, filter: None, only_segments: false };
    let inputs = Inputs { plan: Plan::new(options, &Features::of_host(), true, true), seed };
    let mut deaths = 0;
    while board.finished.load(Relaxed) == 0 && deaths < MOST_DEATHS {
        in_child(|| feed_until(end, &inputs, board, layout))?;
        if board.finished.load(Relaxed) == 0 {
            deaths += 1;
            let index = board.current.load(Relaxed);
            board.fail(index, &inputs.case(index).0, "    killed the process under test\n");
            board.next.store(index + 1, Relaxed);
        }
    }
    let (fed, failed) = (board.next.load(Relaxed), board.failures());
    println!("seed {seed:#x}, {seconds} seconds");
    println!("{} passed, {failed} failed", fed - failed);
    Ok(failed == 0)
}

fn feed_until(end: Instant, inputs: &Inputs, board: &Board, layout: Layout) -> Result<(), String> {
    let engine = engine::open()?;
    let mut targets = [
        TranslatedTarget::with_limit(engine.as_ref(), layout, 3, LIMIT)?,
        TranslatedTarget::with_limit(engine.as_ref(), layout, 0, LIMIT)?,
    ];
    while Instant::now() < end {
        let index = board.next.load(Relaxed);
        board.current.store(index, Relaxed);
        let (case, kernel) = inputs.case(index);
        if let Err(text) = targets[usize::from(kernel)].feed(&case) {
            board.fail(index, &case, &format!("    {text}\n"));
        }
        board.next.store(index + 1, Relaxed);
    }
    board.finished.store(1, Relaxed);
    Ok(())
}

/// Inputs by index.
struct Inputs {
    plan: Plan,
    seed: u64,
}

impl Inputs {
    /// The input of `index`, and whether it runs at privilege 0: random bytes, or generated
    /// instructions with some bits flipped.
    fn case(&self, index: u64) -> (Case, bool) {
        let mut rng = Rng::new(self.seed, index);
        let kernel = rng.chance(50);
        let generated = (0..4).find_map(|_| self.plan.case(rng.next() >> 8)).filter(|_| rng.chance(75));
        let mut case = generated.unwrap_or_else(|| random_bytes(&mut rng));
        if let Some((_, code)) = case.memory.iter_mut().find(|(address, _)| *address == case.cpu.rip) {
            flip_bits(&mut rng, code);
        }
        let kernel = kernel && case.bits == 64;
        (case, kernel)
    }
}

fn random_bytes(rng: &mut Rng) -> Case {
    let mut cpu = inputs::state(rng);
    cpu.rip = CODE + rng.below(4096);
    let mut code = vec![0; rng.range(1, 64) as usize];
    rng.fill(&mut code);
    Case {
        class: crate::case::Class::Integer,
        name: "random bytes".to_owned(),
        bits: rng.pick(&[64, 64, 32]),
        memory: vec![(cpu.rip, code)],
        cpu,
        selectors: None,
        ignored: Vec::new(),
        ignored_flags: 0,
        any_address_in_page: false,
        any_fault: false,
        partial_registers: Vec::new(),
    }
}

fn flip_bits(rng: &mut Rng, code: &mut [u8]) {
    for _ in 0..rng.range(1, 4) {
        let at = rng.below(code.len() as u64) as usize;
        code[at] ^= 1 << rng.below(8);
    }
}
