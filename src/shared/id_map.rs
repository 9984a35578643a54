//! A map from ids to values, for ids that are given out in rising order.

/// So many gaps are not worth closing.
const GAPS: usize = 32;

/// A list of entries in the order of their ids. A new entry comes last, and any entry is found by
/// binary search. An entry that is removed leaves a gap; the gaps are closed when they are more
/// than the entries, so that a removal costs one move of an entry on the average. An entry whose
/// value is a pointer takes 16 bytes, half of what it would take in a `BTreeMap`.
#[derive(Debug)]
pub(crate) struct IdMap<T> {
    /// `None` is a gap. The last entry is never one.
    entries: Vec<(u64, Option<T>)>,
    /// How many entries are no gaps.
    len: usize,
}

impl<T> IdMap<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an entry, whose id is higher than all that were added before.
    pub(crate) fn push(&mut self, id: u64, value: T) {
        debug_assert!(self.entries.last().is_none_or(|(last, _)| *last < id));
        self.entries.push((id, Some(value)));
        self.len += 1;
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let index = self.index(id)?;
        self.entries[index].1.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let index = self.index(id)?;
        self.entries[index].1.as_mut()
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let index = self.index(id)?;
        let removed = self.entries[index].1.take()?;
        self.len -= 1;
        while self
            .entries
            .last()
            .is_some_and(|(_, value)| value.is_none())
        {
            self.entries.pop();
        }
        // The memory of a time with many more entries is given back, too.
        let gaps = self.entries.len() > 2 * self.len + GAPS;
        if gaps || self.entries.capacity() > 8 * (self.len + GAPS) {
            self.close_gaps();
        }
        Some(removed)
    }

    /// The values, in the order of their ids.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|(_, value)| value.as_ref())
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries
            .iter_mut()
            .filter_map(|(_, value)| value.as_mut())
    }

    /// Where the entry of an id is; that may be a gap.
    fn index(&self, id: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    /// Removes the gaps, and gives memory back if there is far too much.
    #[cold]
    fn close_gaps(&mut self) {
        self.entries.retain(|(_, value)| value.is_some());
        if self.entries.capacity() > 8 * (self.len + GAPS) {
            self.entries.shrink_to(2 * self.len + GAPS);
        }
    }
}

impl<T> Default for IdMap<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            len: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn assert_same(list: &IdMap<u64>, tree: &BTreeMap<u64, u64>) {
        assert_eq!(list.len(), tree.len());
        assert_eq!(list.is_empty(), tree.is_empty());
        assert!(list.values().eq(tree.values()));
    }

    /// Against the standard library's map, with additions and removals at random.
    #[test]
    fn it_holds_what_a_tree_would() {
        let (mut list, mut tree) = (IdMap::default(), BTreeMap::new());
        let mut state = 1_u64;
        for id in 1..5000_u64 {
            list.push(id, 10 * id);
            tree.insert(id, 10 * id);
            // More come than go, then the other way round.
            for _ in 0..if id % 1000 < 500 { 1 } else { 3 } {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let victim = 1 + (state >> 33) % id;
                assert_eq!(list.get(victim), tree.get(&victim));
                assert_eq!(list.remove(victim), tree.remove(&victim));
            }
            assert_same(&list, &tree);
        }
    }

    /// The entries that came last are removed first, and so leave no gaps.
    #[test]
    fn room_is_given_back_in_whatever_order_they_go() {
        let mut list = IdMap::default();
        for id in 0..100_000 {
            list.push(id, ());
        }
        for id in (0..100_000).rev() {
            assert_eq!(list.remove(id), Some(()));
        }
        assert!(list.is_empty());
        assert!(list.entries.capacity() < 1000);
    }

    #[test]
    fn one_that_stays_does_not_keep_the_room_of_those_who_went() {
        let mut list = IdMap::default();
        list.push(0, ());
        for id in 1..100_000 {
            list.push(id, ());
        }
        for id in 1..100_000 {
            assert_eq!(list.remove(id), Some(()));
            assert!(list.entries.len() <= 2 * list.len() + GAPS);
        }
        for id in 100_000..200_000 {
            list.push(id, ());
            // The entry before the last, so that there is always an entry behind the gap.
            list.remove(id - 1);
        }
        list.remove(199_999);
        assert_eq!((list.len(), list.get(0)), (1, Some(&())));
        assert!(list.entries.capacity() < 1000);
    }
}
