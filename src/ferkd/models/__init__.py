"""Networks: architectures by name, weights without pickle, teachers, committees, students."""
