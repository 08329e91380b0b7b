"""Where one image's stars lie on another: lists, matches, transformations, distortions."""
