"""The environments in other people's trainers and servers: one file each, which alone imports that library."""
