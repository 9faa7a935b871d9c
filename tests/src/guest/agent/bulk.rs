//! Services that move bytes: echo, source and sink.
//!
//! Owns nothing but the bytes on their way.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::Guest;
use crate::guest::pattern;
use crate::guest::protocol::{ALL_ONES, SINK_STRIDE, read_number};

const PIECE_SIZE: usize = 64 << 10;

/// Sends back what comes.
pub(super) fn echo(mut stream: TcpStream, _guest: &Guest) -> io::Result<()> {
    let mut piece = vec![0; PIECE_SIZE];
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            length => stream.write_all(&piece[..length])?,
        }
    }
}

/// Sends the part of the pattern that is asked for.
pub(super) fn source(mut stream: TcpStream, _guest: &Guest) -> io::Result<()> {
    let mut offset = read_number(&mut stream)?;
    let length = read_number(&mut stream)?;
    let endless = length == ALL_ONES;
    let mut left = length;
    let mut piece = vec![0; PIECE_SIZE];
    while endless || left > 0 {
        let size = usize::try_from(left).unwrap_or(PIECE_SIZE).min(PIECE_SIZE);
        pattern::fill(offset, &mut piece[..size]);
        stream.write_all(&piece[..size])?;
        offset = offset.wrapping_add(size as u64);
        left = if endless { left } else { left - size as u64 };
    }
    Ok(())
}

/// Takes the pattern, checks it, and says how far it is good.
pub(super) fn sink(mut stream: TcpStream, _guest: &Guest) -> io::Result<()> {
    let (mut count, mut told) = (0, 0);
    let mut piece = vec![0; PIECE_SIZE];
    loop {
        let length = stream.read(&mut piece)?;
        if pattern::check(count, &piece[..length]).is_err() {
            return stream.write_all(&ALL_ONES.to_le_bytes());
        }
        count += length as u64;
        if length == 0 || count / SINK_STRIDE > told / SINK_STRIDE {
            stream.write_all(&count.to_le_bytes())?;
            told = count;
        }
        if length == 0 {
            return Ok(());
        }
    }
}
