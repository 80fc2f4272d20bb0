// A straight line through points that arrive one at a time, without storing them.
#pragma once

#include <algorithm>

namespace sift {

// Running means and centred second moments (Welford): stable where all points lie close together
// and far from the origin, as log lengths do, and exactly zero spread for equal values.
struct LeastSquares {
  double count = 0.0;
  double mean_x = 0.0;
  double mean_y = 0.0;
  double sum_xx = 0.0;  // sum of (x - mean_x)^2
  double sum_xy = 0.0;
  double sum_yy = 0.0;

  void add(double x, double y) {
    count += 1.0;
    const double dx = x - mean_x;
    const double dy = y - mean_y;
    mean_x += dx / count;
    mean_y += dy / count;
    sum_xx += dx * (x - mean_x);
    sum_xy += dx * (y - mean_y);
    sum_yy += dy * (y - mean_y);
  }

  double slope() const { return sum_xx > 0.0 ? sum_xy / sum_xx : 0.0; }

  double intercept(double slope) const { return mean_y - slope * mean_x; }

  // 1 - residual / total sum of squares of the line through the means; with equal ys 1 for a flat
  // line and 0 for any other.
  double r_squared(double slope) const {
    const double explained = slope * (2.0 * sum_xy - slope * sum_xx);
    if (sum_yy > 0.0) return std::min(explained / sum_yy, 1.0);
    return explained < 0.0 ? 0.0 : 1.0;
  }
};

}  // namespace sift
