//! Numbered places that are used again, with a generation that tells the old tenant from the new.

/// Names one tenant for good: the place's index and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Place.
    pub index: u32,
    /// Which tenant of it; 24 bits, so that an `Id` fits a [`crate::host::Token`].
    pub generation: u32,
}

const GENERATIONS: u32 = 1 << 24;

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    tenant: Option<T>,
}

/// A bounded table of `T`.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    limit: usize,
}

impl<T> Slab<T> {
    /// An empty table for at most `limit` tenants.
    pub fn new(limit: usize) -> Self {
        Self { places: Vec::new(), free: Vec::new(), limit }
    }

    /// Tenants now.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no place left.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// The `Id` that the next [`Slab::insert`] gives.
    pub fn next_id(&self) -> Id {
        let index = self.free.last().copied().unwrap_or(self.places.len() as u32);
        let generation = self.places.get(index as usize).map_or(0, |place| place.generation);
        Id { index, generation }
    }

    /// Take a tenant in; given back where the table is full.
    ///
    /// # Errors
    /// `tenant`, when full.
    pub fn insert(&mut self, tenant: T) -> Result<Id, T> {
        if self.is_full() {
            return Err(tenant);
        }
        let id = self.next_id();
        if self.free.pop().is_none() {
            self.places.push(Place { generation: 0, tenant: None });
        }
        self.places[id.index as usize].tenant = Some(tenant);
        Ok(id)
    }

    /// The tenant, unless it has left.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let place = self.places.get_mut(id.index as usize)?;
        if place.generation == id.generation {
            place.tenant.as_mut()
        } else {
            None
        }
    }

    /// Take the tenant out.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        let place = self.places.get_mut(id.index as usize)?;
        if place.generation != id.generation {
            return None;
        }
        let tenant = place.tenant.take()?;
        place.generation = (place.generation + 1) % GENERATIONS;
        self.free.push(id.index);
        Some(tenant)
    }

    /// All tenants, by place.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let id = Id { index: index as u32, generation: place.generation };
            place.tenant.as_ref().map(|tenant| (id, tenant))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_id_does_not_reach_the_new_tenant() {
        let mut slab = Slab::new(1);
        let old = slab.insert('a').unwrap();
        assert_eq!(slab.insert('b'), Err('b'));
        assert_eq!(slab.remove(old), Some('a'));
        let new = slab.insert('c').unwrap();
        assert_eq!((slab.get_mut(old).copied(), slab.remove(old)), (None, None));
        assert_eq!((slab.get_mut(new).copied(), slab.len()), (Some('c'), 1));
    }
}
