//! The hash tree of RFC 9162 §2.1: the left subtree of n leaves has the largest power of two below n.

use crate::hash::sha256;

/// One quote serves at most this many sessions; a path then has at most ten hashes.
pub const MAX_LEAVES: usize = 1024;

type Hash = [u8; 32];

/// A leaf's siblings, from the bottom up.
type Path = Vec<Hash>;

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[0x01], left, right])
}

/// The root over `leaves`, and each leaf's path; `None` without leaves.
pub(super) fn build(leaves: &[Hash]) -> Option<(Hash, Vec<Path>)> {
    let mut paths = vec![Vec::new(); leaves.len()];
    Some((subtree(leaves, &mut paths)?, paths))
}

/// Depth is the logarithm of the number of leaves.
fn subtree(leaves: &[Hash], paths: &mut [Path]) -> Option<Hash> {
    if let [] | [_] = leaves {
        return leaves.first().copied();
    }
    let split = leaves.len().div_ceil(2).next_power_of_two();
    let (left_leaves, right_leaves) = leaves.split_at(split);
    let (left_paths, right_paths) = paths.split_at_mut(split);
    let left = subtree(left_leaves, left_paths)?;
    let right = subtree(right_leaves, right_paths)?;
    left_paths.iter_mut().for_each(|path| path.push(right));
    right_paths.iter_mut().for_each(|path| path.push(left));
    Some(node(&left, &right))
}

/// The root that a leaf at `index` of `leaves` and its path lead to (RFC 9162 §2.1.3.2); `None` if
/// there is no such place in a tree.
pub(super) fn root_from_path(leaf: Hash, index: u32, leaves: u32, path: &[Hash]) -> Option<Hash> {
    if index >= leaves || leaves as usize > MAX_LEAVES {
        return None;
    }
    let (mut at, mut last) = (index, leaves - 1);
    let mut hash = leaf;
    for sibling in path {
        if last == 0 {
            return None;
        }
        if at % 2 == 1 || at == last {
            hash = node(sibling, &hash);
            // A last leaf without a right sibling rises to the level where it has a left one.
            while at % 2 == 0 && at != 0 {
                at /= 2;
                last /= 2;
            }
        } else {
            hash = node(&hash, sibling);
        }
        at /= 2;
        last /= 2;
    }
    (last == 0).then_some(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(count: usize) -> Vec<[u8; 32]> {
        (0..count).map(|i| sha256(&[&i.to_le_bytes()])).collect()
    }

    #[test]
    fn every_leaf_of_every_small_tree_leads_to_the_root() {
        for count in 1..70 {
            let leaves = leaves(count);
            let (root, paths) = build(&leaves).unwrap();
            for (index, (leaf, path)) in leaves.iter().zip(&paths).enumerate() {
                let found = root_from_path(*leaf, index as u32, count as u32, path);
                assert_eq!(found, Some(root), "leaf {index} of {count}");
                for other in (0..count).filter(|&other| other != index) {
                    let found = root_from_path(*leaf, other as u32, count as u32, path);
                    assert_ne!(found, Some(root), "leaf {index} of {count} passed for {other}");
                }
            }
        }
    }

    #[test]
    fn no_tree_without_leaves() {
        assert_eq!(build(&[]), None);
        assert_eq!(root_from_path([0; 32], 0, 0, &[]), None);
    }

    #[test]
    fn the_largest_tree_has_paths_of_ten() {
        let (_, paths) = build(&leaves(MAX_LEAVES)).unwrap();
        assert!(paths.iter().all(|path| path.len() == 10));
        assert_eq!(root_from_path([0; 32], 0, MAX_LEAVES as u32 + 1, &[[0; 32]; 11]), None);
    }

    proptest! {
        #[test]
        fn a_changed_path_misses_the_root(count in 2usize..200, pick: prop::sample::Index, at: prop::sample::Index, bit in 0usize..256) {
            let leaves = leaves(count);
            let (root, mut paths) = build(&leaves).unwrap();
            let index = pick.index(count);
            let path = &mut paths[index];
            let at = at.index(path.len());
            path[at][bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(root_from_path(leaves[index], index as u32, count as u32, path), Some(root));
        }

        #[test]
        fn any_numbers_are_survived(index: u32, leaves: u32, path in prop::collection::vec(any::<[u8; 32]>(), 0..20)) {
            let _ = root_from_path([0; 32], index, leaves, &path);
        }
    }
}
