//! Gregorian calendar and clock fields, without time zones.

/// Seconds in a day.
pub(super) const DAY_S: i64 = 86_400;

/// What the RTC's registers hold, in binary. May be out of range while a guest sets them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields {
    /// Second, 0 to 59.
    pub second: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Day of the month, from 1.
    pub day: u8,
    /// Month, from 1.
    pub month: u8,
    /// Year of the century.
    pub year: u8,
    /// Century, 20 for years from 2000.
    pub century: u8,
}

/// Days from 1970-01-01 to the first of March of `year`, where a year starts in March so that the
/// leap day is its last.
fn days_to_march(year: i64) -> i64 {
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) - 719_468
}

/// Days from the first of March to the first of a month counted from March (0 to 11).
fn days_into_year(month: i64) -> i64 {
    (153 * month + 2) / 5
}

impl Fields {
    /// Seconds since 1970-01-01T00:00:00. Fields out of range carry over; the month is clamped.
    pub(super) fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = i64::from(self.century) * 100 + i64::from(self.year) - i64::from(month <= 2);
        let days = days_to_march(year) + days_into_year((month + 9) % 12) + i64::from(self.day) - 1;
        let time = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * DAY_S + time
    }

    /// The fields of a moment from year 0 to 9999; others are clamped to these.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let seconds = seconds.clamp(days_to_march(0) * DAY_S, days_to_march(9999) * DAY_S);
        let (days, time) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
        let mut year = (days + 719_468).div_euclid(365);
        while days_to_march(year) > days {
            year -= 1;
        }
        let day_of_year = days - days_to_march(year);
        let month = (5 * day_of_year + 2) / 153;
        let year = year + i64::from(month >= 10);
        Self {
            second: (time % 60) as u8,
            minute: (time / 60 % 60) as u8,
            hour: (time / 3600) as u8,
            day: (day_of_year - days_into_year(month) + 1) as u8,
            month: ((month + 2) % 12 + 1) as u8,
            year: year.rem_euclid(100) as u8,
            century: (year / 100) as u8,
        }
    }
}

/// Day of the week of a moment, 1 for Sunday to 7.
pub(super) fn weekday(seconds: i64) -> u8 {
    ((seconds.div_euclid(DAY_S) + 4).rem_euclid(7) + 1) as u8
}
