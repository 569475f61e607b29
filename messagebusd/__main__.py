"""``python -m messagebusd``."""

from messagebusd.cli import main

if __name__ == "__main__":
    main()
