"""The version, for those below the package itself: it imports them."""

VERSION = "0.2.0"
