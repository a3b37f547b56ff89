"""What all tests share. Unit tests need nothing of it: they run without root and without the harness's tools."""
