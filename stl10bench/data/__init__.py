"""STL-10 on disk: reading, checking, downloading, drawing a stand-in, splitting."""
