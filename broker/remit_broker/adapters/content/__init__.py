"""What content is searched for, and how: tables of kinds, ways in which text is disguised, places in nested JSON."""
