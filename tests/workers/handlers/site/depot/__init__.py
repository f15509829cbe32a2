"""The app with the jobs; its handlers are a package."""
