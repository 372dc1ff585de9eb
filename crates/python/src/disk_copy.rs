//! `copy_pieces`: a copy of `sublet_block`.

use crate::error::{guarded, InternalError, InvalidError};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use std::ops::Range;
use std::os::fd::RawFd;
use sublet_block::copy::{copy, CopyError, Piece, Plan, WINDOW};

/// (descriptor or -1, offset in the file, bytes)
type Row = (RawFd, u64, u64);

fn piece((fd, host, size): Row) -> Piece {
    Piece { place: (fd >= 0).then_some((fd, host)), size }
}

/// The rows as pieces, if they end below 2^63.
fn checked(offset: u64, rows: Vec<Row>) -> PyResult<Vec<Piece>> {
    let end = rows.iter().try_fold(offset, |end, &(_, host, size)| {
        host.checked_add(size)?;
        end.checked_add(size).filter(|&end| i64::try_from(end).is_ok())
    });
    end.ok_or_else(|| InvalidError::new_err("the pieces end past 2^63"))?;
    Ok(rows.into_iter().map(piece).collect())
}

/// `OSError` with its number, which makes it what Python's own calls raise.
fn os_error(error: &std::io::Error) -> PyErr {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
    PyOSError::new_err((error.raw_os_error().unwrap_or_default(), text))
}

#[pyfunction]
pub fn copy_pieces(
    py: Python<'_>,
    offset: u64,
    pieces: Vec<Row>,
    granularity: u64,
    place: Py<PyAny>,
) -> PyResult<()> {
    if granularity == 0 || WINDOW % granularity != 0 {
        return Err(InvalidError::new_err(format!("blocks of {granularity} bytes")));
    }
    let pieces = checked(offset, pieces)?;
    let plan = Plan { offset, pieces: &pieces, granularity };
    let place = |runs: &[Range<u64>]| -> PyResult<Vec<Piece>> {
        let ranges: Vec<(u64, u64)> = runs.iter().map(|run| (run.start, run.end - run.start)).collect();
        let rows: Vec<Row> = Python::attach(|py| place.call1(py, (ranges,))?.extract(py))?;
        Ok(rows.into_iter().map(piece).collect())
    };
    let watch = || Python::attach(|py| py.check_signals());
    py.detach(|| guarded(|| Ok(copy(&plan, place, watch))))?.map_err(|error| match error {
        CopyError::Host(error) => os_error(&error),
        CopyError::Place(error) | CopyError::Stopped(error) => error,
        CopyError::Misplaced => {
            InternalError::new_err("data was placed for other ranges than were asked for")
        }
    })
}
