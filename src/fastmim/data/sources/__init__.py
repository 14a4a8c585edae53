"""Places that images come from: folders, tars, tables, packs, demo data."""
