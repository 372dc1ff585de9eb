//! What connects lines, interrupt controllers, the system timer and local APICs.

use crate::ioapic::{IoApic, IOAPIC_PINS};
use crate::lapic::LocalApic;
use crate::message::{Delivery, DeliveryMode, Message};
use crate::pic::PicPair;
use crate::sync::{lock, read};
use crate::system_timer::SystemTimer;
use crate::timer::AlarmSlot;
use crate::Clock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// The I/O APIC pin of the 8259s' output (as Intel's ICH wires it).
const EXTINT_PIN: usize = 0;
/// The I/O APIC pin of GSI 0, the 8254's.
const TIMER_PIN: usize = 2;

/// The controllers that lines go to.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) pics: PicPair,
    pub(crate) ioapic: IoApic,
    /// The output of the 8259s as LINT0 and the I/O APIC know it.
    pic_output: bool,
}

/// Shared by the chipset and, weakly, by each local APIC.
pub(crate) struct Fabric {
    pub(crate) system_timer: SystemTimer,
    pub(crate) lines: Mutex<Lines>,
    pub(crate) apics: RwLock<Vec<Arc<LocalApic>>>,
    /// Where the search for a lowest-priority destination starts, so that equals take turns.
    turn: AtomicUsize,
    pub(crate) messages: AtomicU64,
    pub(crate) undelivered: AtomicU64,
}

impl Fabric {
    /// Everything at reset state, without local APICs.
    pub(crate) fn new(clock: Arc<dyn Clock>, alarm: Arc<AlarmSlot>) -> Self {
        Self {
            system_timer: SystemTimer::new(clock, alarm),
            lines: Mutex::default(),
            apics: RwLock::default(),
            turn: AtomicUsize::new(0),
            messages: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
        }
    }

    /// The local APIC with this ID.
    pub(crate) fn apic(&self, id: u32) -> Option<Arc<LocalApic>> {
        read(&self.apics).iter().find(|apic| apic.id() == id).cloned()
    }

    /// Deliver to whom the destination names. Returns what became of it where it went best.
    pub(crate) fn deliver(&self, message: &Message) -> Delivery {
        self.deliver_where(message, |apic| apic.matches(message.destination))
    }

    /// Deliver to those that `chosen` names, or to one of them where the message says so.
    pub(crate) fn deliver_where(&self, message: &Message, chosen: impl Fn(&LocalApic) -> bool) -> Delivery {
        self.messages.fetch_add(1, Ordering::Relaxed);
        let apics = read(&self.apics);
        let delivery = if message.to_one || message.mode == DeliveryMode::LowestPriority {
            self.lowest(&apics, chosen).map(|apic| apic.accept(message))
        } else {
            let matching = apics.iter().filter(|apic| chosen(apic));
            matching.map(|apic| apic.accept(message)).max()
        };
        let delivery = delivery.unwrap_or(Delivery::Refused);
        if delivery == Delivery::Refused {
            self.undelivered.fetch_add(1, Ordering::Relaxed);
        }
        delivery
    }

    /// The chosen local APIC of lowest processor priority (SDM vol. 3A §11.6.2.4 "Lowest Priority Delivery Mode").
    fn lowest<'a>(
        &self,
        apics: &'a [Arc<LocalApic>],
        chosen: impl Fn(&LocalApic) -> bool,
    ) -> Option<&'a Arc<LocalApic>> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % apics.len().max(1);
        let (before, after) = apics.split_at(start);
        let in_turn = after.iter().chain(before).filter(|apic| chosen(apic));
        let candidates = in_turn.filter_map(|apic| Some((apic.arbitration()? >> 4, apic)));
        candidates.min_by_key(|(priority, _)| *priority).map(|(_, apic)| apic)
    }

    /// Set the level of a GSI. GSI 0 is I/O APIC pin 2; GSI 2 is the cascade and not connected.
    pub(crate) fn set_line(&self, gsi: u32, level: bool) {
        let pin = match gsi {
            0 => TIMER_PIN,
            2 => return,
            _ => gsi as usize,
        };
        if pin >= IOAPIC_PINS {
            return;
        }
        let mut lines = lock(&self.lines);
        lines.pics.set_line(gsi as u8, level);
        self.set_pin(&mut lines, pin, level);
        self.spread_pic_output(&mut lines);
    }

    /// Let GSI 0 rise and fall. Returns what became of the tick where it went best: a masked input
    /// refuses it, one whose last tick still waits merges the two.
    pub(crate) fn pulse_timer(&self) -> Delivery {
        let mut lines = lock(&self.lines);
        let through_pic = lines.pics.timer_rise();
        lines.pics.set_line(0, true);
        let through_ioapic = self.set_pin(&mut lines, TIMER_PIN, true);
        self.spread_pic_output(&mut lines);
        lines.pics.set_line(0, false);
        self.set_pin(&mut lines, TIMER_PIN, false);
        self.spread_pic_output(&mut lines);
        through_pic.max(through_ioapic)
    }

    fn set_pin(&self, lines: &mut Lines, pin: usize, level: bool) -> Delivery {
        match lines.ioapic.set_level(pin, level) {
            Some(message) => self.send(lines, pin, message),
            None => Delivery::Refused,
        }
    }

    fn send(&self, lines: &mut Lines, pin: usize, message: Message) -> Delivery {
        let delivery = self.deliver(&Message { reports_eoi: pin == TIMER_PIN, ..message });
        if delivery != Delivery::Refused {
            lines.ioapic.accepted(pin);
        }
        delivery
    }

    /// Tell LINT0 and the I/O APIC when the 8259s' output has changed.
    pub(crate) fn spread_pic_output(&self, lines: &mut Lines) {
        let output = lines.pics.output();
        if output == lines.pic_output {
            return;
        }
        lines.pic_output = output;
        self.set_pin(lines, EXTINT_PIN, output);
        for apic in read(&self.apics).iter() {
            apic.set_lint0(output);
        }
    }

    /// Send what level-triggered pins have to say, after a change of their entries or an EOI.
    pub(crate) fn resample(&self, lines: &mut Lines, pins: u32) {
        for pin in (0..IOAPIC_PINS).filter(|pin| pins >> pin & 1 != 0) {
            if let Some(message) = lines.ioapic.level_message(pin) {
                self.send(lines, pin, message);
            }
        }
    }

    /// A local APIC ended a level-triggered interrupt, or one of the system timer's.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        let mut lines = lock(&self.lines);
        let pins = lines.ioapic.end_of_interrupt(vector);
        self.resample(&mut lines, pins);
        drop(lines);
        self.system_timer.catch_up(self);
    }
}
