"""Writers: one for each format, all of them fed by blocks."""
