"""Hardware as pure data: devices, fabrics, profiles and the catalogue."""
