//! Runs the cases in a child process and starts another one where a case killed it.

use crate::case::{Case, Outcome, Target};
use crate::compare::differences;
use crate::engine;
use crate::features::Features;
use crate::inputs;
use crate::native::{compat_works, install_segments, NativeTarget};
use crate::plan::{Options, Plan};
use crate::report::{describe, Board};
use crate::skip;
use crate::translated::TranslatedTarget;
use crate::xstate::Layout;
use std::sync::atomic::Ordering::Relaxed;

/// Cases that run natively in a row, before the translated side runs them.
const BATCH: u64 = 64;
/// Seconds that a batch may take before the worker is ended: a guest loop that nothing stops.
const BATCH_SECONDS: u32 = 60;
/// Deaths of the worker after which the run is given up.
const MOST_DEATHS: u64 = 40;
/// Every n-th 64-bit case also runs at privilege 0.
const KERNEL_EVERY: u64 = 4;

/// Run everything. Returns whether all cases agreed.
///
/// # Errors
/// A sentence, when the host cannot run the oracle at all.
pub fn supervise(options: Options, target: &str) -> Result<bool, String> {
    let features = Features::of_host();
    let layout = Layout::of_host();
    let compat = compat_works(&mut NativeTarget::new(layout)?);
    let segments = compat && install_segments();
    let plan = Plan::new(options, &features, compat, segments);
    print_plan(&plan, &features, compat, segments);
    let board = Board::shared().map_err(|error| format!("no shared memory: {error}"))?;
    board.next.store(plan.options().first, Relaxed);
    let mut deaths = 0;
    while board.finished.load(Relaxed) == 0 && deaths < MOST_DEATHS {
        let status = in_child(|| work(&plan, board, layout, target))?;
        if board.finished.load(Relaxed) == 0 {
            deaths += 1;
            note_death(&plan, board, status)?;
        }
    }
    if deaths == MOST_DEATHS {
        println!("given up after {deaths} deaths of the process under test");
    }
    board.print();
    Ok(board.failures() == 0 && deaths == 0)
}

fn print_plan(plan: &Plan, features: &Features, compat: bool, segments: bool) {
    let (long, short) = plan.encodings();
    println!("{long} encodings in 64-bit mode, {short} in compatibility mode; left out of 64-bit mode:");
    for (reason, count) in skip::summary(64, features) {
        println!("  {count:>5}  {reason}");
    }
    if !segments {
        println!("16-bit code is not run: this host's kernel has no modify_ldt");
    }
    if !compat {
        println!("compatibility mode is not run: this host's kernel does not run 32-bit code");
    }
    println!("seed {:#x}, {} cases", plan.options().seed, plan.options().cases);
}

/// Fork, run `work` in the child, and wait for it. Returns the wait status.
pub fn in_child(work: impl FnOnce() -> Result<(), String>) -> Result<i32, String> {
    // SAFETY: the process has one thread here, so the child may go on as this one would.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(format!("cannot fork: {}", std::io::Error::last_os_error()));
    }
    if child == 0 {
        let code = match work() {
            Ok(()) => 0,
            Err(text) => {
                println!("error: {text}");
                2
            }
        };
        std::process::exit(code);
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    unsafe { libc::waitpid(child, &mut status, 0) };
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 2 {
        return Err("the process under test could not start".to_owned());
    }
    Ok(status)
}

/// The worker is gone: the case it was in has failed; go on behind it.
fn note_death(plan: &Plan, board: &Board, status: i32) -> Result<(), String> {
    let index = board.current.load(Relaxed);
    let case = plan.case(index).ok_or("the process under test died outside a case")?;
    let how = if libc::WIFSIGNALED(status) {
        format!("died of signal {}", libc::WTERMSIG(status))
    } else {
        format!("left with code {}", libc::WEXITSTATUS(status))
    };
    board.fail(index, &case, &format!("    the process under test {how}\n"));
    board.next.store(index + 1, Relaxed);
    Ok(())
}

/// What cases are held against.
enum Other {
    Native,
    Translated(Box<[TranslatedTarget; 2]>),
}

fn work(plan: &Plan, board: &Board, layout: Layout, target: &str) -> Result<(), String> {
    let mut native = NativeTarget::inherited(layout);
    let mut other = match target {
        "native" => Other::Native,
        "translate" => {
            let engine = engine::open()?;
            let target = |privilege| TranslatedTarget::new(engine.as_ref(), layout, privilege);
            Other::Translated(Box::new([target(3)?, target(0)?]))
        }
        _ => return Err(format!("unknown target {target:?}: translate or native")),
    };
    let end = plan.options().first + plan.options().cases;
    while board.next.load(Relaxed) < end {
        // SAFETY: asks for SIGALRM, which ends the process, unless the next batch comes first.
        unsafe { libc::alarm(BATCH_SECONDS) };
        let first = board.next.load(Relaxed);
        let last = (first + BATCH).min(end);
        batch(plan, board, first..last, &mut native, &mut other);
        board.next.store(last, Relaxed);
    }
    board.finished.store(1, Relaxed);
    Ok(())
}

fn batch(
    plan: &Plan,
    board: &Board,
    indices: std::ops::Range<u64>,
    native: &mut NativeTarget,
    other: &mut Other,
) {
    board.current.store(indices.start, Relaxed);
    let numbered: Vec<(u64, Case)> =
        indices.filter_map(|index| plan.case(index).map(|case| (index, case))).collect();
    let cases: Vec<Case> = numbered.iter().map(|(_, case)| case.clone()).collect();
    let expected = native.run_all(&cases, |at| board.current.store(numbered[at].0, Relaxed));
    for ((index, case), expected) in numbered.iter().zip(expected) {
        board.current.store(*index, Relaxed);
        let expected = match expected {
            Ok(outcome) => outcome,
            Err(_) => {
                board.not_run.fetch_add(1, Relaxed);
                continue;
            }
        };
        if plan.options().cases == 1 {
            println!("case {index}: {}\n{}    {:x?}", case.name, describe(case), expected.fault);
        }
        board.ended(expected.fault.vector);
        match check(*index, case, &expected, native, other) {
            text if text.is_empty() => board.pass(case.class),
            text => board.fail(*index, case, &text),
        }
    }
}

fn check(
    index: u64,
    case: &Case,
    expected: &Outcome,
    native: &mut NativeTarget,
    other: &mut Other,
) -> String {
    let compare = |target: &mut dyn Target, privilege| match target.run(case) {
        Ok(outcome) => differences(case, expected, &outcome, privilege),
        Err(text) => format!("    {text}\n"),
    };
    match other {
        Other::Native => compare(native, 3),
        Other::Translated(targets) => {
            let user = compare(&mut targets[0], 3);
            let only_for_users = case.bits != 64 || case.cpu.rflags & inputs::ALIGNMENT != 0;
            if !user.is_empty() || only_for_users || index % KERNEL_EVERY != 0 {
                return user;
            }
            let kernel = compare(&mut targets[1], 0);
            if kernel.is_empty() {
                kernel
            } else {
                format!("    at privilege 0:\n{kernel}")
            }
        }
    }
}
