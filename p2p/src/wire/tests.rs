use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures::io::Cursor;
use proptest::prelude::*;

use tokio::sync::mpsc;

use super::*;

/// A pipe whose reads and writes come in the sizes it is told, with a pause after each.
struct Choppy {
    bytes: Vec<u8>,
    at: usize,
    sizes: Vec<usize>,
    turn: usize,
}

impl Choppy {
    fn new(bytes: Vec<u8>, sizes: &[usize]) -> Self {
        Self { bytes, at: 0, sizes: sizes.to_vec(), turn: 0 }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Option<usize> {
        self.turn += 1;
        if self.turn.is_multiple_of(3) {
            cx.waker().wake_by_ref();
            return None;
        }
        Some(self.sizes[self.turn % self.sizes.len()].max(1))
    }
}

impl AsyncRead for Choppy {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(size) = self.step(cx) else { return Poll::Pending };
        let n = size.min(buf.len()).min(self.bytes.len() - self.at);
        buf[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(size) = self.step(cx) else { return Poll::Pending };
        let n = size.min(buf.len());
        self.bytes.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs a future whose waker is always called before it returns `Pending`.
fn run<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

fn encode(frames: &[Vec<u8>], sizes: &[usize]) -> Vec<u8> {
    let mut pipe = Choppy::new(Vec::new(), sizes);
    let mut writer = FrameWriter::new(&mut pipe, MAX_SESSION_FRAME);
    for frame in frames {
        let (a, b) = frame.split_at(frame.len() / 2);
        writer.queue(&[a, b]).unwrap();
    }
    run(writer.flush()).unwrap();
    pipe.bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_survive_any_chopping_of_reads_and_writes(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..40),
        sizes in prop::collection::vec(1usize..700, 1..8),
    ) {
        let bytes = encode(&frames, &sizes);
        let mut reader = FrameReader::new(Choppy::new(bytes.clone(), &sizes), MAX_SESSION_FRAME);
        let mut plain = Choppy::new(bytes, &sizes);
        for frame in &frames {
            prop_assert_eq!(&run(reader.next()).unwrap().unwrap()[..], &frame[..]);
            prop_assert_eq!(&run(read_frame(&mut plain, MAX_SESSION_FRAME)).unwrap().unwrap()[..], &frame[..]);
        }
        prop_assert!(run(reader.next()).unwrap().is_none());
        prop_assert!(run(read_frame(&mut plain, MAX_SESSION_FRAME)).unwrap().is_none());
    }

    #[test]
    fn a_cut_stream_is_an_error_that_says_how_much_is_missing(
        frame in prop::collection::vec(any::<u8>(), 1..400), cut in 1usize..400
    ) {
        let bytes = encode(&[frame], &[64]);
        let cut = cut.min(bytes.len() - 1);
        let short = bytes[..bytes.len() - cut].to_vec();
        let mut reader = FrameReader::new(Cursor::new(short.clone()), MAX_SESSION_FRAME);
        let expected = if short.len() < HEADER_BYTES { HEADER_BYTES - short.len() } else { cut };
        let error = run(reader.next()).unwrap_err();
        prop_assert!(matches!(error, FrameError::Truncated { missing } if missing == expected), "{error}");
        prop_assert!(run(read_frame(&mut Cursor::new(short), MAX_SESSION_FRAME)).is_err());
    }
}

#[test]
fn an_oversize_frame_is_refused_before_anything_is_allocated_and_ends_the_stream() {
    let mut bytes = u32::MAX.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0; 64]);
    let mut reader = FrameReader::new(Cursor::new(bytes.clone()), 1024);
    let error = run(reader.next()).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { found, limit: 1024 } if found == u32::MAX as usize));
    assert!(run(reader.next()).unwrap().is_none());
    assert!(run(read_frame(&mut Cursor::new(bytes), 1024)).is_err());
    let mut writer = FrameWriter::new(Cursor::new(Vec::new()), 8);
    assert!(matches!(writer.queue(&[&[0; 5], &[0; 4]]), Err(FrameError::TooLarge { found: 9, limit: 8 })));
    assert_eq!(writer.queued(), 0);
}

#[test]
fn many_frames_come_out_of_one_read_without_another() {
    let frames: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n; 20]).collect();
    let bytes = encode(&frames, &[4096]);
    let mut reader = FrameReader::new(Cursor::new(bytes), MAX_SESSION_FRAME);
    assert_eq!(run(reader.next()).unwrap().unwrap()[0], 0);
    for n in 1..100u8 {
        assert_eq!(reader.buffered().unwrap().unwrap()[0], n);
    }
    assert!(reader.buffered().unwrap().is_none());
}

#[tokio::test]
async fn the_pump_sends_what_queued_up_and_closes_the_stream_at_the_end() {
    let (frames, queue) = mpsc::channel(64);
    for n in 0..50u8 {
        frames.send(vec![n; 3].into()).await.unwrap();
    }
    drop(frames);
    let mut sent = Cursor::new(Vec::new());
    pump(queue, FrameWriter::new(&mut sent, 64)).await.unwrap();
    assert_eq!(sent.into_inner().len(), 50 * (HEADER_BYTES + 3));
}

#[test]
fn frames_stay_whole_and_in_order_when_the_sent_part_is_dropped_between_them() {
    let mut writer = FrameWriter::new(Choppy::new(Vec::new(), &[1, 9_000, 9_000]), MAX_SESSION_FRAME);
    let mut cx = Context::from_waker(Waker::noop());
    for n in 0..40u8 {
        writer.queue(&[&vec![n; 20_000]]).unwrap();
        let _ = writer.poll_flush(&mut cx);
    }
    run(writer.flush()).unwrap();
    let mut reader = FrameReader::new(Cursor::new(writer.into_inner().bytes), MAX_SESSION_FRAME);
    for n in 0..40u8 {
        assert_eq!(&run(reader.next()).unwrap().unwrap()[..], &[n; 20_000]);
    }
    assert!(run(reader.next()).unwrap().is_none());
}
