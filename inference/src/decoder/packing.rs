//! The weights of a decoder, packed while a checkpoint is read.
//!
//! A file gives its tensors in an order of its own, and stacked weights may lie in several files. So memory for the
//! packed weights is taken first, and every tensor has its place there: rows go into it as they are read, and no
//! tensor is ever whole in memory in another form.

use std::convert::Infallible;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::weights::{Named, Parameter, Role, Source, parameters, read};
use super::{DecoderConfig, ServingDecoder};
use crate::kernels::{Filling, Matrix, Precision};

/// A decoder whose weights are yet to come.
#[derive(Debug)]
pub struct Packing {
    config: DecoderConfig,
    /// In the order of [`parameters`], as are the vectors.
    matrices: Vec<Matrix>,
    /// Norms and biases.
    vectors: Vec<Vec<f32>>,
}

impl Packing {
    /// Takes the memory. Fails where the system has not as much.
    pub fn new(config: DecoderConfig, precision: Precision) -> io::Result<Self> {
        let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
        for Parameter { tensors, .. } in parameters(&config) {
            let rows = tensors.iter().map(|(_, shape)| height(shape)).sum();
            match width(&tensors) {
                Some(width) => matrices.push(Matrix::zeros(rows, width, precision)?),
                None => vectors.push(vec![0.0; rows]),
            }
        }
        Ok(Self { config, matrices, vectors })
    }

    /// Gives every tensor its place.
    pub fn places(&mut self) -> Places<'_> {
        let mut matrices = self.matrices.iter_mut().map(|matrix| Slot::Matrix(matrix.filling()));
        let mut vectors = self.vectors.iter_mut().map(|values| Slot::Vector(Mutex::new(values)));
        let mut places = Places { slots: Vec::new(), tensors: Vec::new() };
        for Parameter { tensors, .. } in parameters(&self.config) {
            let mut first = 0;
            for (_, shape) in &tensors {
                places.tensors.push(Place { slot: places.slots.len(), first });
                first += height(shape);
            }
            places.slots.extend(if width(&tensors).is_some() { matrices.next() } else { vectors.next() });
        }
        places
    }

    /// The decoder, once every tensor is in its place.
    pub fn finish(self) -> ServingDecoder {
        let Self { config, matrices, vectors } = self;
        let mut packed = Packed { matrices: matrices.into_iter(), vectors: vectors.into_iter() };
        let Ok(parts) = read(&config, &mut packed);
        ServingDecoder::new(config, parts)
    }
}

fn height(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or_default()
}

/// The width of the tensors of a matrix.
fn width(tensors: &[Named]) -> Option<usize> {
    tensors.first().and_then(|(_, shape)| shape.get(1).copied())
}

/// The places of all tensors, numbered as [`layout`](super::weights::layout) lists them.
#[derive(Debug)]
pub struct Places<'a> {
    slots: Vec<Slot<'a>>,
    tensors: Vec<Place>,
}

#[derive(Debug)]
enum Slot<'a> {
    Matrix(Filling<'a>),
    Vector(Mutex<&'a mut Vec<f32>>),
}

#[derive(Debug)]
struct Place {
    slot: usize,
    /// The row of the slot that the tensor begins at.
    first: usize,
}

impl Places<'_> {
    /// Puts whole rows of a tensor into their place, from row `first` of the tensor on. A vector counts as one row
    /// for each value.
    ///
    /// # Panics
    ///
    /// If there is no such tensor, or it has not so many rows.
    pub fn put(&self, tensor: usize, first: usize, values: &[f32]) {
        let place = &self.tensors[tensor];
        let first = place.first + first;
        match &self.slots[place.slot] {
            Slot::Matrix(filling) => filling.rows(first, values),
            Slot::Vector(to) => {
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                to[first..][..values.len()].copy_from_slice(values);
            }
        }
    }

    /// Notes what rounding changed.
    pub fn finish(self) {
        for slot in self.slots {
            if let Slot::Matrix(filling) = slot {
                filling.finish();
            }
        }
    }
}

/// Hands out what was packed.
struct Packed {
    matrices: std::vec::IntoIter<Matrix>,
    vectors: std::vec::IntoIter<Vec<f32>>,
}

impl Source for Packed {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Error = Infallible;

    fn matrix(&mut self, parameter: &Parameter) -> Result<Matrix, Infallible> {
        let matrix = self.matrices.next();
        Ok(matrix.unwrap_or_else(|| unreachable!("{parameter:?} is among those that were packed")))
    }

    fn values(&mut self, _: &Parameter) -> Result<Vec<f32>, Infallible> {
        Ok(self.vectors.next().unwrap_or_default())
    }

    fn vector(&self, _: Role, values: Vec<f32>) -> Vec<f32> {
        values
    }
}
