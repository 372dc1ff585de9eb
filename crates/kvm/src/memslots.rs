//! Telling KVM which memslots changed.

use crate::error::refused;
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::sync::Arc;
use sublet_engine::Result;
use sublet_memory::{GuestMemory, Memslot, PAGE_SIZE};

/// The slots as KVM has them. Holding them keeps their RAM mapped.
#[derive(Debug, Default)]
pub struct KernelMemslots(BTreeMap<u32, Arc<Memslot>>);

fn flags(slot: &Memslot) -> u32 {
    let readonly = if slot.readonly { KVM_MEM_READONLY } else { 0 };
    let log_dirty = if slot.log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    readonly | log_dirty
}

/// Whether KVM can turn one into the other in place: only the dirty log differs.
fn same_place(old: &Memslot, new: &Memslot) -> bool {
    (old.gpa, old.size, old.host_base(), old.readonly) == (new.gpa, new.size, new.host_base(), new.readonly)
}

impl KernelMemslots {
    /// Make KVM's slots those of `memory`.
    ///
    /// Slots that went or moved are removed before others are added, so that they may swap places.
    ///
    /// # Errors
    /// KVM refuses a slot; those before it are in effect.
    pub fn update(&mut self, vm: &VmFd, memory: &GuestMemory) -> Result<()> {
        let wanted = memory.slots();
        let stays = |old: &Memslot| wanted.iter().any(|new| new.slot == old.slot && same_place(old, new));
        let gone: Vec<u32> = self.0.values().filter(|old| !stays(old)).map(|old| old.slot).collect();
        for number in gone {
            self.remove(vm, number)?;
        }
        for slot in wanted.iter() {
            self.set(vm, slot)?;
        }
        Ok(())
    }

    fn remove(&mut self, vm: &VmFd, number: u32) -> Result<()> {
        let Some(slot) = self.0.get(&number) else { return Ok(()) };
        set_region(vm, slot, 0)?;
        self.0.remove(&number);
        Ok(())
    }

    fn set(&mut self, vm: &VmFd, slot: &Arc<Memslot>) -> Result<()> {
        let known = self.0.get(&slot.slot);
        if known.is_none_or(|known| flags(known) != flags(slot)) {
            set_region(vm, slot, slot.size)?;
        }
        self.0.insert(slot.slot, slot.clone());
        Ok(())
    }

    /// Pages of a slot that the guest wrote since the last call; empty where KVM keeps no log.
    ///
    /// # Errors
    /// The host refuses.
    pub fn take_dirty(&self, vm: &VmFd, number: u32) -> Result<Vec<u64>> {
        match self.0.get(&number).filter(|slot| slot.log_dirty) {
            Some(slot) => vm
                .get_dirty_log(number, slot.size.next_multiple_of(PAGE_SIZE) as usize)
                .map_err(refused("KVM_GET_DIRTY_LOG")),
            None => Ok(Vec::new()),
        }
    }
}

/// Set a slot with `size` bytes; 0 removes it.
fn set_region(vm: &VmFd, slot: &Memslot, size: u64) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: slot.slot,
        flags: flags(slot),
        guest_phys_addr: slot.gpa,
        memory_size: size,
        userspace_addr: slot.host_base() as u64,
    };
    // SAFETY: `KernelMemslots` holds the slot, and with it the mapping, for as long as KVM has it;
    // the VM is closed before, or the memory is left to the VM's descriptor, which nobody runs.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused("KVM_SET_USER_MEMORY_REGION"))
}
