"""The playground: a page in the browser that samples, reconstructs and interpolates. It knows no command line."""
